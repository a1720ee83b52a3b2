"""Where verdicts can go: a callback of the LMS, a database, a plugin."""
