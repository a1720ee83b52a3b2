"""Every kind of grader keeps the contract of :class:`edxagent.interfaces.IGrader`."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import TestCase

from edxagent.graders import registry
from edxagent.testing.graders import (
    CORRECT,
    FailingGraderContractTests,
    GraderContractTests,
    SlowGraderContractTests,
    StubGrader,
    build,
)
from edxagent.testing.http_server import RogueServer, answering, resetting, saying, silent


class HTTPGraderTests(GraderContractTests, SlowGraderContractTests, FailingGraderContractTests, TestCase):
    """Kind ``http``."""

    async def setUp(self) -> None:
        """Start a good server, a silent one, one that resets, and one without a verdict."""
        self.servers: list[RogueServer] = []
        for behaviour in (answering(CORRECT), silent, resetting, saying(b"HTTP/1.1 204 Nothing\r\n\r\n")):
            server = RogueServer(behaviour)
            await server.start(self.reactor)
            self.addCleanup(server.stop)
            self.servers.append(server)

    def of_server(self, number: int) -> Any:
        """A grader that asks one of the servers."""
        return build(registry.find_factory("http"), self.reactor, url=self.servers[number].url)

    def make_grader(self) -> Any:
        """A grader that answers."""
        return self.of_server(0)

    def make_slow_grader(self) -> Any:
        """A grader that takes its time."""
        return self.of_server(1)

    def make_failing_graders(self) -> list[Any]:
        """Graders that fail."""
        return [self.of_server(2), self.of_server(3)]

    def is_under_way(self) -> bool:
        """Whether the silent server has visitors."""
        return self.servers[1].open > 0


class CommandGraderTests(GraderContractTests, SlowGraderContractTests, FailingGraderContractTests, TestCase):
    """Kind ``command``."""

    def setUp(self) -> None:
        """Have a folder for working folders."""
        self.work_dir = self.mktemp()

    def running(self, script: str) -> Any:
        """A grader that runs a shell script."""
        command = ("/bin/sh", "-c", script)
        return build(registry.find_factory("command"), self.reactor, command=command, work_dir=self.work_dir)

    def make_grader(self) -> Any:
        """A grader that answers."""
        return self.running(f"cat > /dev/null; echo '{CORRECT.decode()}' >&3")

    def make_slow_grader(self) -> Any:
        """A grader that takes its time."""
        return self.running("sleep 60")

    def make_failing_graders(self) -> list[Any]:
        """Graders that fail."""
        missing = build(
            registry.find_factory("command"), self.reactor, command=("/no/such/program",), work_dir=self.work_dir
        )
        return [missing, self.running("exit 3"), self.running("kill -KILL $$"), self.running("true")]


class SleepGraderTests(GraderContractTests, SlowGraderContractTests, TestCase):
    """Kind ``sleep``."""

    def make_grader(self) -> Any:
        """A grader that answers."""
        return build(registry.find_factory("sleep"), self.reactor, min=0.0, max=0.01)

    def make_slow_grader(self) -> Any:
        """A grader that takes its time."""
        return build(registry.find_factory("sleep"), self.reactor, min=60.0, max=60.0)


class FixedGraderTests(GraderContractTests, TestCase):
    """Kind ``fixed``."""

    def make_grader(self) -> Any:
        """A grader that answers."""
        return build(registry.find_factory("fixed"), self.reactor)


class FailingGraderTests(GraderContractTests, FailingGraderContractTests, TestCase):
    """Kind ``failing``."""

    def make_grader(self) -> Any:
        """A grader that answers."""
        return build(registry.find_factory("failing"), self.reactor, share=0.0)

    def make_failing_graders(self) -> list[Any]:
        """Graders that fail."""
        factory = registry.find_factory("failing")
        words = ("unavailable", "timed-out", "crashed", "bad-reply")
        return [build(factory, self.reactor, outcome=word) for word in words]


class StubGraderTests(GraderContractTests, SlowGraderContractTests, TestCase):
    """The double that tests use."""

    def make_grader(self) -> Any:
        """A grader that answers."""
        return StubGrader()

    def make_slow_grader(self) -> Any:
        """A grader that takes its time."""
        return StubGrader(None)
