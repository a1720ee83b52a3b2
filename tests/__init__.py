"""The tests of edxagent. Run them with ``make test``."""

from hypothesis import HealthCheck, settings

# How fast examples can be made depends on what else the machine does, and says nothing about the code.
settings.register_profile("edxagent", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edxagent")
