"""Tells ``twistd`` of the command ``edxagent``.

This folder must not hold an ``__init__.py``: it is a part of Twisted's own package.
"""

from twisted.application.service import ServiceMaker

edxagent = ServiceMaker("edxagent", "edxagent.tap", "Grade Open edX submissions from RabbitMQ queues.", "edxagent")
