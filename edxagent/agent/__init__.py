"""The agent: takes submissions from queues, has them graded, publishes the verdicts."""

from edxagent.agent.service import AgentService, make_agent_service

__all__ = ["AgentService", "make_agent_service"]
