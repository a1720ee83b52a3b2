"""The tests of edxagent. Run them with ``make test``."""
