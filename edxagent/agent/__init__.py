"""The agent: takes submissions from queues, has them graded, publishes the verdicts."""

from edxagent.agent.remote import RemoteAgent, make_agent
from edxagent.agent.service import AgentService, make_agent_service

__all__ = ["AgentService", "RemoteAgent", "make_agent", "make_agent_service"]
