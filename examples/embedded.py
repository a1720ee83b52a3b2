"""Your Twisted program, with the agent in it: ``twistd -n -y examples/embedded.py``.

The program was a web site before. Now it grades as well, in the same process, with the same reactor and log.
"""

import os

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application, MultiService
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.web.resource import Resource
from twisted.web.server import Site
from twisted.web.static import Data

from edxagent.agent import make_agent_service
from edxagent.config.agent import read_agent_config
from edxagent.graders.registry import find_factory

application = Application("campus")
campus = MultiService()
campus.setServiceParent(application)

# What was there before.
listen = os.environ.get("CAMPUS_LISTEN", "tcp:8000:interface=127.0.0.1")
pages = Resource()
pages.putChild(b"", Data(b"Welcome to the campus.\n", "text/plain"))
StreamServerEndpointService(serverFromString(reactor, listen), Site(pages)).setServiceParent(campus)

# The agent. A ConfigError lists all that is wrong with the file.
config = read_agent_config("etc/agent.ini", environment=os.environ, find_factory=find_factory)
agent = make_agent_service(
    config,
    reactor,
    # Called when only a person can help: a wrong password, a missing queue. Carry on without grading, or stop.
    on_refused=lambda refused: print(f"campus: no grading for now: {refused}"),
)
agent.setServiceParent(campus)
