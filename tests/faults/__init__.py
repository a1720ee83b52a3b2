"""What breaks, and what becomes of the submissions then: run for real, counted by id. See ``docs/reliability.md``."""
