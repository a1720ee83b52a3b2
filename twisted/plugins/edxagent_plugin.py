"""Tells ``twistd`` of the commands ``edxagent`` and ``edxagent-lms``.

This folder must not hold an ``__init__.py``: it is a part of Twisted's own package.
"""

from twisted.application.service import ServiceMaker

edxagent = ServiceMaker(
    "edxagent", "edxagent.tap.agent", "Grade Open edX submissions from RabbitMQ queues.", "edxagent"
)

edxagent_lms = ServiceMaker(
    "edxagent-lms", "edxagent.tap.lms", "Pass Open edX submissions on to RabbitMQ, and verdicts back.", "edxagent-lms"
)
