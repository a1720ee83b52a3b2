"""The soak: real agents under a steady load, and one random fault after the other for as long as somebody wants."""
