"""The real agent, ``twistd --nodaemon edxagent``, as a process against the shared broker, for end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from signal import SIGTERM
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from edxagent.amqp.channel import Channel
from edxagent.amqp.delivery import Delivery
from edxagent.model import dead_queue_of
from tests.amqp_support import LinkTestCase, message
from tests.cli_process import Run, start_agent, until

PATIENCE = 60.0
POLL = 0.05

_COUNT = """\
lists:sum([begin
    {{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, Name)),
    {{ok, Count, _}} = ra:consistent_query(amqqueue:get_pid(Queue), fun rabbit_fifo:query_messages_total/1),
    Count
end || Name <- [{names}]])."""

Sections = Mapping[str, object]


@frozen
class AgentProcess:
    """A started agent."""

    run: Run

    @property
    def log(self) -> str:
        """Everything that it wrote until now, to either output."""
        return self.run.out + self.run.err

    @property
    def pid(self) -> int:
        """Its process number."""
        transport: Any = self.run.transport
        return int(transport.pid)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.run.status is None

    async def ready(self) -> None:
        """Wait until both its connections are up, and it has asked for requests."""
        for purpose in ("publish", "consume"):
            await self.says(f"({purpose}): connected to ")

    async def says(self, words: str, times: int = 1) -> None:
        """Wait until it has written ``words`` so often."""
        await until(lambda: self.log.count(words) >= times or not self.alive, self.run)
        if self.log.count(words) < times:
            raise AssertionError(f"it never said {words!r} but ended with {self.run.status}:\n{self.log}")

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        self.run.kill(number)

    async def ended(self) -> int:
        """Wait for its end; its exit status, or minus the signal that ended it."""
        return await self.run.ends()

    async def stop(self, number: int = SIGTERM) -> int:
        """Send it a signal and wait for its end."""
        self.send_signal(number)
        return await self.ended()


class AgentTestCase(LinkTestCase):
    """A test with agents of its own, which are killed when it ends.

    :ivar broker: a channel in confirm mode.
    :ivar requests: the name of the queue that agents take from; its dead letters are in :attr:`dead`.
    :ivar results: the name of the queue where verdicts go.
    :ivar journal: the folder where agents write down what they are grading.
    """

    broker: Channel

    async def set_up(self) -> None:
        """Choose names, and open a channel."""
        self.requests = self.unique("requests")
        self.dead = dead_queue_of(self.requests)
        self.results = self.unique("results")
        self.journal = Path(self.mktemp()).absolute()
        self.broker = await self.channel(confirming=True)
        self.addCleanup(lambda: Deferred.fromCoroutine(self._remove_queues()))

    def write_config(self, **sections: Sections) -> str:
        """A configuration file; ``sections`` add to what is there by default, or replace it. Returns its path."""
        defaults: dict[str, Sections] = {
            "agent": {"name": "e2e", "concurrency": 4, "drain_timeout": 10, "hold_limit": 5},
            "broker": {"urls": self.node.url, "call_timeout": 10, "retry_initial": 0.1, "retry_max": 1},
            "queues": {self.requests: ""},
            "grader": {"kind": "fixed"},
            "results": {"queue": self.results},
            "quarantine": {"journal": self.journal},
        }
        merged = {name: {**defaults.get(name, {}), **sections.get(name, {})} for name in (*defaults, *sections)}
        path = Path(self.mktemp())
        path.write_text(as_ini(merged))
        return str(path.absolute())

    def start_agent(self, config: str | None = None, **sections: Sections) -> AgentProcess:
        """Start an agent, with the configuration file ``config``, or one made of ``sections``; it isn't ready yet."""
        return AgentProcess(start_agent(self, config or self.write_config(**sections)))

    async def agent(self, **sections: Sections) -> AgentProcess:
        """An agent that is at work."""
        agent = self.start_agent(**sections)
        await agent.ready()
        return agent

    async def publish(self, body: bytes, queue: str | None = None, **properties: Any) -> None:
        """Put a message straight into a queue, :attr:`requests` by default; returns when the broker has it."""
        await self.broker.publish(message(queue or self.requests, body, **properties))

    async def collect(self, queue: str, count: int) -> list[Delivery]:
        """Take messages from a queue, and out of it, until there were ``count``."""
        from twisted.internet import reactor

        taken: list[Delivery] = []
        deadline = reactor.seconds() + PATIENCE  # type: ignore[attr-defined]
        while len(taken) < count:
            delivery = await self.broker.get(queue)
            if delivery is not None:
                delivery.ack()
                taken.append(delivery)
                continue
            if reactor.seconds() > deadline:  # type: ignore[attr-defined]
                raise AssertionError(f"{len(taken)} of {count} messages came to {queue} within {PATIENCE:g} s")
            await deferLater(reactor, POLL)  # type: ignore[arg-type]
        return taken

    async def ready_in(self, queue: str) -> int:
        """How many messages a queue has ready."""
        return (await self.broker.declare_queue(queue, passive=True)).messages

    async def held_in(self, *queues: str) -> int:
        """How many messages are in quorum queues, those that somebody took and hasn't settled among them.

        Several are counted at one moment: a result goes to and fro between some.
        """
        names = ", ".join(f'<<"{queue}">>' for queue in queues)
        return int(await self.node.rabbitmqctl("eval", _COUNT.format(names=names)))

    async def until_settled(self, *queues: str) -> None:
        """Wait until queues, :attr:`requests` by default, hold nothing any more, neither ready nor unsettled."""
        queues = queues or (self.requests,)
        for _ in range(20):
            if not await self.held_in(*queues):
                return
        raise AssertionError(f"{' or '.join(queues)} doesn't get empty")

    def assert_clean(self, agent: AgentProcess, secrets: Iterable[str] = ()) -> None:
        """Fail if an agent's log holds a traceback, or one of ``secrets``."""
        for words in ("Traceback", "Unhandled", *secrets):
            self.assertNotIn(words, agent.log)

    async def _remove_queues(self) -> None:
        # After a restart the queues stay: RabbitMQ 3.10 loses its supervisor of dead-lettering, and then itself, when a
        # queue is deleted just as its leader is elected (rabbit_fifo_dlx_worker: badmatch, not_found).
        if not self.broker.closed:
            for queue in (self.requests, self.dead, self.results):
                await self.broker.delete_queue(queue)


def as_ini(sections: Mapping[str, Sections]) -> str:
    """A configuration file's text."""
    return "\n".join(
        "\n".join([f"[{name}]", *(f"{key} = {value}" for key, value in entries.items()), ""])
        for name, entries in sections.items()
    )
