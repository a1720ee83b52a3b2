"""Our HTTP client: treq over Twisted's agent, bounded, and cut off when cancelled."""
