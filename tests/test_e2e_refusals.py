"""What the real agent says, and how it ends, where it can't start or isn't let in; and what it goes on trying."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.protocol import Factory, Protocol

from tests.agentprocess import AgentProcess, AgentTestCase
from tests.cli_process import start
from tests.faults.proxy import FaultProxy
from tests.outcomes import request

SECRET = "s3cret-8f21"
QUICK = 5.0
"""Seconds."""


class Mute(Protocol):
    """Takes what comes and says nothing."""


class WebServer(Protocol):
    """Answers in HTTP, whatever it is asked."""

    def connectionMade(self) -> None:
        """Answer before there was a question."""
        transport: Any = self.transport
        transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        transport.loseConnection()


class BrokerRefusesTests(AgentTestCase):
    """What only a person can mend: one line says how, and the exit status is 3."""

    def url(self, user: str = "guest", vhost: str = "%2F", scheme: str = "amqp", port: int | None = None) -> str:
        """The node's, or one that is wrong."""
        return f"{scheme}://{user}@{self.node.host}:{port or self.node.port}/{vhost}"

    def secret_file(self) -> str:
        """A file with a password."""
        path = Path(self.mktemp()).absolute()
        path.touch(0o600)
        path.write_text(SECRET)
        return str(path)

    async def user(self, *permissions: str) -> dict[str, object]:
        """A new user's section ``[broker]``."""
        name = self.unique("user")
        await self.node.rabbitmqctl("add_user", name, SECRET)
        await self.node.rabbitmqctl("set_permissions", name, *permissions)
        return {"urls": self.url(name), "password_file": self.secret_file()}

    async def refusal(self, *words: str, **sections: Any) -> AgentProcess:
        """Start an agent that is refused: see that it says ``words`` in one line, and ends soon and in order."""
        agent = self.start_agent(**sections)
        self.assertEqual(await agent.ended(), 3, agent.log)
        lines = [line.split(" ", 2) for line in agent.log.splitlines()]
        problems = {line.partition(": ")[2] for _, level, line in lines if level in ("error", "warn")}
        self.assertEqual(len(problems), 2, agent.log)
        problems.remove("this doesn't heal by itself; no more attempts")
        (problem,) = problems
        for word in words:
            self.assertIn(word, problem)
        self.assertTrue(lines[-1][2].endswith("Server Shut Down."))
        first, last = (datetime.fromisoformat(lines[end][0].rstrip("Z")) for end in (0, -1))
        self.assertLess((last - first).total_seconds(), QUICK)
        self.assert_clean(agent, [SECRET])
        return agent

    async def test_wrong_password(self) -> None:
        """The line names where the password comes from."""
        broker = {"urls": self.url(), "password_file": self.secret_file()}
        await self.refusal("refused the login", "password_file", "[broker] urls", broker=broker)

    async def test_unknown_virtual_host(self) -> None:
        """The line names the virtual host and the command that makes it."""
        await self.refusal("vhost nowhere", "rabbitmqctl add_vhost", broker={"urls": self.url(vhost="nowhere")})

    async def test_missing_queue(self) -> None:
        """With ``declare = no`` the line names the queue that is missing and the two remedies."""
        for exchange in ("grading.requests", "grading.dead", "grading.results"):
            await self.broker.declare_exchange(exchange, "direct")
        for queue in (self.results, self.dead, self.requests):
            words = (f"there is no queue '{queue}'", "create it, or write declare = yes into [broker]")
            await self.refusal(*words, broker={"declare": "no"})
            await self.broker.declare_queue(queue)
        retry = {"delays": "4321"}
        await self.refusal(
            "there is no exchange 'grading.retry.4321000'", *words[1:], broker={"declare": "no"}, retry=retry
        )
        for declare in ("yes", "no"):
            agent = await self.agent(broker={"declare": declare}, retry=retry)
            self.assertEqual(await agent.stop(), -15)

    async def test_permissions(self) -> None:
        """The line names what the user may not do, and the command that grants it."""
        for what, permissions in {
            "can't declare": ("^$", ".*", ".*"),
            "can't bind": (".*", "^$", ".*"),
            "grading.results": (".*", ".*", "^$"),
        }.items():
            broker = await self.user(*permissions)
            await self.refusal(what, "403", "rabbitmqctl set_permissions", broker=broker)

    async def test_exclusive_queue(self) -> None:
        """The line says that a queue is another connection's own."""
        await self.broker.declare_queue(self.requests, durable=False, exclusive=True)
        await self.refusal(f"can't use queue '{self.requests}'", "405", "exclusive to another connection")

    async def test_tls_to_a_plain_port(self) -> None:
        """The line says that TLS failed and names the port."""
        await self.refusal("TLS failed", "the port", broker={"urls": self.url(scheme="amqps")})

    async def test_web_server(self) -> None:
        """The line says that it is no broker that answers."""
        port = self.listen(WebServer)
        await self.refusal("this is a web server", "[broker] urls", broker={"urls": self.url(port=port)})

    async def test_all_of_several(self) -> None:
        """The agent doesn't end before every address has refused."""
        urls = [self.url(vhost="nowhere"), self.url()]
        agent = await self.agent(broker={"urls": "\n  ".join(urls)})
        self.assertIn("vhost nowhere not found", agent.log)
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent)

    async def test_after_it_was_up(self) -> None:
        """Later the agent goes on trying: a broker that is being rebuilt refuses for a while."""
        broker = await self.user(".*", ".*", ".*")
        user = str(broker["urls"]).partition("://")[2].partition("@")[0]
        agent = await self.agent(broker=broker)
        await self.node.rabbitmqctl("change_password", user, "another")
        await self.node.rabbitmqctl("close_all_user_connections", user, "test")
        for purpose in ("publish", "consume"):
            await agent.says(
                f"({purpose}): amqp://{user}@{self.node.host}:{self.node.port} vhost /: the broker refused"
            )
        await self.node.rabbitmqctl("change_password", user, SECRET)
        await agent.says("): connected to ", times=4)
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent, [SECRET])

    def listen(self, protocol: type[Protocol]) -> int:
        """A port where something else answers."""
        from twisted.internet import reactor

        factory = Factory.forProtocol(protocol)
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface=self.node.host)  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)


class OddTopologyTests(AgentTestCase):
    """What somebody else made on the broker."""

    async def test_other_types(self) -> None:
        """Exchanges and queues of another type than ours are taken as they are, so long as they carry messages."""
        vhost = self.unique("vhost")
        await self.node.rabbitmqctl("add_vhost", vhost)
        await self.node.rabbitmqctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
        self.broker = await self.channel(self.link(self.config(evolve(self.address, vhost=vhost))), confirming=True)
        for exchange, kind in (("requests", "headers"), ("dead", "fanout"), ("results", "topic")):
            await self.broker.declare_exchange(f"grading.{exchange}", kind)
        await self.broker.declare_queue(self.requests, arguments={"x-queue-type": "classic", "x-max-priority": 5})
        agent = await self.agent(broker={"urls": f"amqp://guest@{self.node.host}:{self.node.port}/{vhost}"})
        await self.publish(request())
        await self.publish(b"no JSON")
        await self.collect(self.results, 1)
        await self.collect(self.dead, 1)
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent)


class BrokerIsAwayTests(AgentTestCase):
    """What heals by itself is tried until it has healed."""

    async def test_nobody_listens(self) -> None:
        """The agent tries again and again, and is at work as soon as there is a broker."""
        from twisted.internet import reactor

        vacant = reactor.listenTCP(0, Factory(), interface="127.0.0.1")  # type: ignore[attr-defined]
        number = vacant.getHost().port
        await vacant.stopListening()
        agent = self.start_agent(broker={"urls": f"amqp://guest@127.0.0.1:{number}/"})
        for purpose in ("publish", "consume"):
            await agent.says(f"({purpose}): next try", times=4)
        self.assertTrue(agent.alive)
        self.assertIn("Connection refused", agent.log)
        FaultProxy.start(self, port=number)
        await agent.ready()
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent)

    async def test_nobody_speaks(self) -> None:
        """Something that never greets is given up in time, and tried again."""
        from twisted.internet import reactor

        port = reactor.listenTCP(0, Factory.forProtocol(Mute), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        url = f"amqp://guest@127.0.0.1:{port.getHost().port}/"
        agent = self.start_agent(broker={"urls": url, "connect_timeout": 0.5})
        await agent.says("no broker greeted us within 0.5 s", times=4)
        self.assertEqual(await agent.stop(), -15)
        self.assert_clean(agent)


class ConfigurationTests(AgentTestCase):
    """A configuration that can't be used: every problem in one report, and the exit status 2."""

    async def report(self, *command: str, **sections: Any) -> list[str]:
        """The lines that an agent, started by ``command`` or with ``sections``, refuses them with."""
        run = self.start_twistd(*command) if command else self.start_agent(**sections).run
        self.assertEqual(await run.ends(), 2, run.err)
        self.assertEqual(run.out, "")
        self.assertNotIn(SECRET, run.err)
        return run.err.splitlines()

    def start_twistd(self, *arguments: str) -> Any:
        """Start ``twistd edxagent`` with arguments."""
        twistd = str(Path(sys.executable).with_name("twistd"))
        return start(self, twistd, "--nodaemon", "--pidfile=", "edxagent", *arguments)

    async def test_several_problems(self) -> None:
        """Each problem has its line, with section, key and remedy; no secret is quoted."""
        lines = await self.report(
            agent={"concurency": 3, "drain_timeout": "soon"},
            broker={"urls": f"amqp://guest:{SECRET}@127.0.0.1/", "password": SECRET, "heartbeat": -1},
            queues={"amq.x": "", "other": "wait=2"},
            grader={"kind": "htp"},
            log={"level": "loud"},
            nonsense={"a": 1},
        )
        expected = [
            '[agent] concurency: unknown key; did you mean "concurrency"?', "[agent] drain_timeout: expected a time",
            "[broker] urls: a password doesn't belong here", "[broker] password: a secret isn't written down here",
            "[broker] heartbeat: expected", '[queues] amq.x: names that begin with "amq."', "[queues] other: expected",
            "[grader] kind: unknown kind htp; known are", "[log] level: expected",
            "[nonsense]: unknown section",
        ]  # fmt: skip
        for words in expected:
            self.assertEqual(len([line for line in lines if words in line]), 1, (words, lines))
        self.assertEqual(len(lines), len(expected))

    async def test_options_that_do_not_fit(self) -> None:
        """What a grader's factory refuses is reported likewise."""
        self.assertEqual(
            await self.report(grader={"kind": "sleep", "min": 5, "max": 1}),
            ["[grader] max is below min: raise max, or lower min"],
        )

    async def test_files(self) -> None:
        """A file that isn't there, or is none, has its line."""
        self.assertEqual(
            await self.report("--config", "/nowhere/agent.ini"),
            ["/nowhere/agent.ini: there is no such file; create it, or name another"],
        )
        self.assertEqual(await self.report("--config", "/etc"), ["/etc: isn't a regular file"])

    async def test_overrides(self) -> None:
        """What the command line overrides is checked as the file is, a password never taken."""
        config = self.write_config()
        (line,) = await self.report("--config", config, "--concurrency", "many")
        self.assertIn("--concurrency: expected a whole number", line)
        (line,) = await self.report("--config", config, "--broker-urls", f"amqp://guest:{SECRET}@127.0.0.1/")
        self.assertIn("--broker-urls: a password doesn't belong here", line)

    async def test_usage(self) -> None:
        """What the command line can't mean has its line too."""
        for argument, words in {"--confg=x": "option --confg not recognized", "x.ini": "--config FILE"}.items():
            (line,) = await self.report(argument)
            self.assertIn(words, line)
            self.assertIn("--help", line)
