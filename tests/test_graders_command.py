"""Kind ``command``, with real programs, good and evil."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from glob import glob
from shutil import which
from typing import Any

from attrs import define
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from edxagent.errors import BadReply, GraderCrashed, GraderError, GraderUnavailable
from edxagent.graders import command
from edxagent.graders.process import Leash
from edxagent.graders.workspace import Workspace
from edxagent.model import GraderRequest, GraderResponse
from edxagent.testing.graders import build, make_request, open_descriptors, until

VERDICT = '{"correct": true, "score": 1, "msg": "<p>ok</p>"}'


@define(kw_only=True)
class Ended:
    """A child that is gone, as far as judging it goes."""

    exit_status: int | None = 0
    exit_signal: int | None = None
    overflow: bool = False
    reply: bytes = b""
    stderr: bytes = b""

    @property
    def tails(self) -> dict[int, bytes]:
        """The ends of its outputs."""
        return {1: b"", 2: self.stderr}


class FailureOfTests(SynchronousTestCase):
    """``failure_of``, row by row."""

    def test_table(self) -> None:
        """Every end has its failure, and only a verdict with exit status 0 none."""
        rows: list[tuple[Ended, type[GraderError] | None, str]] = [
            (Ended(reply=b"{}"), None, ""),
            (Ended(reply=b"\xff\x00"), None, ""),
            (Ended(), BadReply, "no verdict on descriptor 3"),
            (Ended(reply=b"{}", exit_status=1), GraderCrashed, "exit status 1"),
            (Ended(reply=b"{}", exit_status=127), GraderCrashed, "exit status 127"),
            (Ended(exit_status=None, exit_signal=9), GraderCrashed, "signal 9 (Killed)"),
            (Ended(exit_status=None, exit_signal=40, reply=b"{}"), GraderCrashed, "signal 40"),
            (Ended(exit_status=None, exit_signal=9, overflow=True), BadReply, "max_reply"),
            (Ended(overflow=True), BadReply, "max_reply"),
            (
                Ended(exit_status=127, stderr=b"secret: 1: exec: x: not found\n"),
                GraderUnavailable,
                "x could not be started: not found",
            ),
            (Ended(exit_status=2, stderr=b"secret: 1: cd: can't cd to /f\n"), GraderUnavailable, "can't cd to /f"),
            (Ended(exit_status=127, stderr=b"other: 1: exec: x: not found\n"), GraderCrashed, "exit status 127: other"),
            (Ended(exit_status=127, stderr=b"x\nsecret: 1: exec: not found\n"), GraderCrashed, "exit status 127"),
        ]
        for child, expected, words in rows:
            failure = command.failure_of(child, "secret", "x")  # type: ignore[arg-type]  # all that it looks at is there
            self.assertIs(None if failure is None else type(failure), expected, child)
            self.assertIn(words, str(failure or ""))

    def test_stderr_in_the_failure(self) -> None:
        """A crash tells what the program said last: shortly, on one line, without control characters."""
        failure = command.failure_of(Ended(exit_status=1, stderr=b"a\x1b[2J\r\n\xff" + b"x" * 999), "secret", "x")  # type: ignore[arg-type]
        self.assertTrue(str(failure).isprintable())
        self.assertLess(len(str(failure)), 300)


class CommandTests(TestCase):
    """What all tests here need: a folder for working folders, and graders that use it."""

    def setUp(self) -> None:
        """Have the reactor and a folder."""
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.base = os.path.abspath(self.mktemp())

    def grader(self, *words: str, **options: Any) -> command.CommandGrader:
        """A grader that runs a command, until the test ends."""
        grader: command.CommandGrader = build(
            command.factory, self.reactor, **{"command": words, "work_dir": self.base, **options}
        )
        grader.startService()
        self.addCleanup(grader.stopService)
        return grader

    def shell(self, script: str, **options: Any) -> command.CommandGrader:
        """A grader that runs a shell script."""
        return self.grader("/bin/sh", "-c", script, **options)

    def python(self, program: str, **options: Any) -> command.CommandGrader:
        """A grader that runs a Python program."""
        return self.grader(sys.executable, "-I", "-S", "-c", program, **options)

    def ask(self, grader: command.CommandGrader, **changes: Any) -> Deferred[GraderResponse]:
        """Start grading."""
        return ensureDeferred(grader.grade(make_request(**changes)))

    async def output(self, grader: command.CommandGrader, **changes: Any) -> str:
        """What a grader answers."""
        return (await self.ask(grader, **changes)).reply.decode()

    def folders(self) -> list[str]:
        """The working folders that there are."""
        return glob(f"{self.base}/*/*")

    async def until_clean(self) -> None:
        """Wait until no working folder is left."""
        await until(lambda: not self.folders(), "working folders to go", self.reactor)

    async def until_dead(self, pid: int) -> None:
        """Wait until a process is gone."""
        await until(lambda: not os.path.exists(f"/proc/{pid}") or _is_zombie(pid), f"process {pid} to go", self.reactor)


@implementer(IReadDescriptor)
class Trigger:
    """Makes a call as one of the reactor's events."""

    def __init__(self, reactor: Any, call: Callable[[], object]) -> None:
        self._reactor = reactor
        self._call = call
        self._ends = os.pipe()
        reactor.addReader(self)

    def pull(self) -> None:
        """Go off in the next round of events."""
        os.write(self._ends[1], b"x")

    def close(self) -> None:
        """Let go."""
        self._reactor.removeReader(self)
        for end in self._ends:
            os.close(end)

    def fileno(self) -> int:
        """What the reactor watches."""
        return self._ends[0]

    def doRead(self) -> None:
        """Here it is."""
        os.read(self._ends[0], 1)
        self._call()

    def connectionLost(self, reason: object) -> None:
        """Never: both ends are ours."""

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return "trigger"


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


class ProtocolTests(CommandTests):
    """What a program gets, and what it can answer."""

    async def test_submission(self) -> None:
        """The submission is one line of JSON on standard input: texts verbatim, and no header."""
        request = GraderRequest(
            submission="id-1",
            queue="6002x",
            attempt=2,
            body='{"student_response": "na\\u00efve"}',
            files='{"a": "http://b"}',
            student_response="naïve\n\x00",
            grader_payload="payload",
            student_info="{}",
        )
        answer = await self.shell("cat >&3").grade(request)
        self.assertEqual(answer.reply.count(b"\n"), 1)
        self.assertEqual(
            json.loads(answer.reply),
            {
                "submission": "id-1",
                "queue": "6002x",
                "attempt": 2,
                "xqueue_body": '{"student_response": "na\\u00efve"}',
                "xqueue_files": '{"a": "http://b"}',
                "student_response": "naïve\n\x00",
                "grader_payload": "payload",
                "student_info": "{}",
                "files": {},
            },
        )

    async def test_large_submission(self) -> None:
        """A submission larger than a pipe holds arrives whole."""
        reply = await self.output(self.shell("wc -c >&3"), student_response="x" * 2**20)
        self.assertGreater(int(reply), 2**20)

    async def test_unread_submission(self) -> None:
        """A program that closes standard input, or doesn't read it, may give a verdict all the same."""
        for script in ("exec <&-; echo {} >&3", "echo {} >&3"):
            self.assertEqual(await self.output(self.shell(script), student_response="x" * 2**20), "{}\n")

    async def test_reply_is_not_judged(self) -> None:
        """What is written on descriptor 3 is passed on whatever it is, with or without a newline."""
        for script, reply in (("printf '{}' >&3", b"{}"), ("printf '\\377\\000x' >&3", b"\xff\x00x")):
            self.assertEqual((await self.ask(self.shell(script))).reply, reply)

    async def test_stdout_is_no_verdict(self) -> None:
        """A verdict on standard output is none."""
        failure = await self.assertFailure(self.ask(self.shell(f"echo '{VERDICT}'")), BadReply)
        self.assertIn("descriptor 3", str(failure))

    async def test_verdict_of_a_crash(self) -> None:
        """A verdict doesn't count when the exit status isn't 0, or a signal was the end."""
        for end in ("exit 1", "kill -SEGV $$"):
            await self.assertFailure(self.ask(self.shell(f"echo '{VERDICT}' >&3; {end}")), GraderCrashed)

    async def test_words_of_a_crash(self) -> None:
        """The failure tells the exit status and what was on standard error."""
        failure = await self.assertFailure(self.ask(self.shell("echo 'no such course' >&2; exit 3")), GraderCrashed)
        self.assertEqual(str(failure), "the command ended with exit status 3: no such course")


class SurroundingsTests(CommandTests):
    """Where a program runs."""

    async def test_environment(self) -> None:
        """The environment holds what is let through, fixed defaults, and nothing else of the agent's."""
        os.environ["EDXAGENT_TEST_SECRET"] = "sesame"
        os.environ["EDXAGENT_TEST_PUBLIC"] = "hello"
        self.addCleanup(os.environ.pop, "EDXAGENT_TEST_SECRET")
        self.addCleanup(os.environ.pop, "EDXAGENT_TEST_PUBLIC")
        reader = "import os; os.write(3, repr(dict(os.environ)).encode())"
        grader = self.python(reader, environment=("LANG", "EDXAGENT_TEST_PUBLIC", "EDXAGENT_TEST_ABSENT"))
        environment = eval(await self.output(grader))
        shell_s_own = {"PWD", "OLDPWD", "LC_CTYPE"}
        self.assertEqual(set(environment) - shell_s_own, {"PATH", "LANG", "HOME", "TMPDIR", "EDXAGENT_TEST_PUBLIC"})
        self.assertEqual(environment["PATH"], "/usr/local/bin:/usr/bin:/bin")
        self.assertEqual(environment["EDXAGENT_TEST_PUBLIC"], "hello")
        self.assertEqual(environment["HOME"], environment["PWD"])

    async def test_folder(self) -> None:
        """Each submission has a folder of its own, empty and private, which is gone afterwards."""
        grader = self.shell("{ pwd; ls -A; stat -c %a .; } >&3; mkdir -p a/b; touch a/b/c; ln -s / root")
        first, second = (await self.output(grader)).split(), (await self.output(grader)).split()
        self.assertEqual((first[1:], second[1:]), (["700"], ["700"]))
        self.assertNotEqual(first[0], second[0])
        await self.until_clean()

    async def test_leftovers(self) -> None:
        """What a killed agent left behind is cleared away at the next start."""
        os.makedirs(f"{self.base}/run-killed/1/deep")
        self.shell("true")
        await until(lambda: not os.path.exists(f"{self.base}/run-killed"), "the old folder to go", self.reactor)

    async def test_session(self) -> None:
        """The program leads a session and a process group of its own."""
        reader = "import os; os.write(3, f'{os.getpid()} {os.getsid(0)} {os.getpgid(0)}'.encode())"
        pid, session, group = (await self.output(self.python(reader))).split()
        self.assertEqual((session, group), (pid, pid))

    async def test_descriptors(self) -> None:
        """The program has no descriptors but the four."""
        reader = "import os; os.write(3, ' '.join(sorted(os.listdir('/proc/self/fd'))).encode())"
        # The fifth is the one that lists them.
        self.assertEqual(await self.output(self.python(reader)), "0 1 2 3 4")

    async def test_signals(self) -> None:
        """No signal is ignored because the agent, or Python, ignores it."""
        ignored = int((await self.output(self.shell("grep SigIgn /proc/self/status >&3"))).split()[1], 16)
        glibc_s_own = 1 << 31 | 1 << 32  # signals 32 and 33, which its posix_spawn ignores
        self.assertEqual(ignored & ~glibc_s_own, 0)

    async def test_program_is_looked_up(self) -> None:
        """A program without a folder is looked up in the PATH that it will see itself."""
        self.assertEqual(await self.output(self.grader("sh", "-c", "echo {} >&3")), "{}\n")


class NotStartedTests(CommandTests):
    """Programs that can't be started are our fault, and told apart from programs that fail."""

    async def refused(self, *words: str, **options: Any) -> str:
        """What is said when a command can't be started."""
        failure = await self.assertFailure(self.ask(self.grader(*words, **options)), GraderUnavailable)
        await self.until_clean()
        return str(failure)

    def file(self, content: bytes, mode: int) -> str:
        """A file."""
        name = os.path.abspath(self.mktemp())
        with open(name, "wb") as file:
            file.write(content)
        os.chmod(name, mode)
        return name

    async def test_missing(self) -> None:
        """A program that isn't there, in full or without a folder."""
        self.assertEqual(
            await self.refused("/no/such/program"),
            "/no/such/program could not be started: not found; mend [grader] command",
        )
        self.assertIn("no-such-program", await self.refused("no-such-program"))

    async def test_not_executable(self) -> None:
        """A file that may not be executed, or a folder."""
        for word in (self.file(b"#!/bin/sh\n", 0o644), os.path.dirname(self.base)):
            self.assertIn(f"{word} could not be started", await self.refused(word))

    async def test_interpreter_missing(self) -> None:
        """A script whose interpreter isn't there."""
        word = self.file(b"#!/no/such/interpreter\n", 0o755)
        self.assertIn(f"{word} could not be started", await self.refused(word))

    async def test_no_program(self) -> None:
        """A file that no machine understands."""
        word = self.file(b"\x7fELF" + bytes(100), 0o755)
        self.assertIn(f"{word} could not be started", await self.refused(word))

    async def test_no_folder(self) -> None:
        """A working folder that can't be made."""
        self.assertIn("mend [grader] work_dir", await self.refused("true", work_dir="/proc/nowhere"))

    async def test_pretending(self) -> None:
        """A program that fails as if it hadn't been started has crashed."""
        for script in ("exit 126", "exit 127", "no-such-command", "echo 'launcher-0: exec: not found' >&2; exit 127"):
            await self.assertFailure(self.ask(self.shell(script)), GraderCrashed)

    async def test_no_descriptors_left(self) -> None:
        """A machine short of descriptors is no fault of the submission's, and nothing leaks."""
        import resource

        grader = self.shell("echo {} >&3")
        await self.ask(grader)
        before = open_descriptors()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 3, limits[1]))
        hogs = []
        try:
            while True:
                hogs.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            os.close(hogs.pop())
        try:
            work = self.ask(grader)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for hog in hogs:
                os.close(hog)
        failure = await self.assertFailure(work, GraderUnavailable)
        self.assertIn("Too many open files", str(failure))
        self.assertEqual(open_descriptors(), before)
        self.assertEqual(await self.output(grader), "{}\n")


class EvilTests(CommandTests):
    """Programs that mean no good."""

    async def test_floods(self) -> None:
        """Any amount of output is taken, and next to nothing of it kept."""
        flood = "import os\nfor _ in range(400): os.write({0}, b'x' * 65536)\nos.write(3, b'{{}}')"
        for descriptor in (1, 2):
            self.assertEqual(await self.output(self.python(flood.format(descriptor))), "{}")

    async def test_endless_verdict(self) -> None:
        """A verdict without end is cut off, and its writer killed."""
        program = "import os\nwhile True: os.write(3, b'x' * 65536)"
        failure = await self.assertFailure(self.ask(self.python(program)), BadReply)
        self.assertIn("max_reply", str(failure))

    async def test_longest_verdict(self) -> None:
        """A verdict of max_reply bytes is taken, one byte more isn't."""
        grader = self.shell("head -c 100000 /dev/zero >&3", max_reply=100000)
        self.assertEqual(len((await self.ask(grader)).reply), 100000)
        await self.assertFailure(self.ask(self.shell("head -c 100001 /dev/zero >&3", max_reply=100000)), BadReply)

    async def test_deaf_to_term(self) -> None:
        """A program that ignores TERM is killed, with all of its group: after a while, or when cancelled again."""
        script = "trap '' TERM; sleep 1000 & echo $! >child; while :; do sleep 1; done"
        for kill_after, times in ((0.1, 1), (1000.0, 2)):
            work = self.ask(self.shell(script, kill_after=kill_after))
            child = await self.pid_in("child")
            for _ in range(times):
                work.cancel()
            await self.assertFailure(work, CancelledError)
            await self.until_dead(child)
            await self.until_clean()

    async def test_term_first(self) -> None:
        """A program that heeds TERM may tidy up before it goes."""
        note = os.path.abspath(self.mktemp())
        script = f"trap 'echo bye >{note}; exit' TERM; echo $$ >child; while :; do sleep 0.01; done"
        work = self.ask(self.shell(script, kill_after=60.0))
        await self.pid_in("child")
        work.cancel()
        await self.assertFailure(work, CancelledError)
        with open(note) as file:
            self.assertEqual(file.read(), "bye\n")

    async def test_left_behind(self) -> None:
        """What a program leaves running in its group is killed when it exits."""
        grader = self.shell("sleep 1000 & echo $! >&3")
        await self.until_dead(int(await self.output(grader)))

    async def test_runaway(self) -> None:
        """A grandchild in a session of its own, which holds every descriptor, doesn't hold up the verdict for long."""
        grader = self.shell("setsid sh -c 'echo $$ >&3; touch up; exec sleep 1000' & while [ ! -e up ]; do :; done")
        pid = int(await self.output(grader, student_response="x" * 2**20))
        self.addCleanup(os.kill, pid, signal.SIGKILL)
        await self.until_clean()

    async def test_runaway_that_floods(self) -> None:
        """A grandchild in a session of its own that writes a verdict without end gets it cut off."""
        program = (
            "import os, sys\nif os.fork() == 0:\n os.setsid()\n os.write(3, b'x')\n"
            " while True: os.write(3, b'x' * 65536)\nos._exit(0)"
        )
        await self.assertFailure(self.ask(self.python(program)), BadReply)

    async def test_events_of_a_predecessor(self) -> None:
        """What happens to the pipes of a program that is given up doesn't happen to those of the next one.

        They have the same numbers: so they mustn't be closed while the reactor goes through a round of events.
        """
        runaway = "setsid sh -c 'echo $$ >child; exec sleep 1000' & echo $$ >main; while [ ! -s child ]; do :; done"
        first, second = self.patient(runaway), self.shell("cat >&3; echo noise; echo noise >&2")
        given_up = self.ask(first)
        child, main = await self.pid_in("child"), await self.pid_in("main")
        await until(lambda: not os.path.exists(f"/proc/{main}"), "the program to be reaped", self.reactor)

        async def next_one() -> str:
            await self.assertFailure(given_up, CancelledError)
            return await self.output(second, submission="following")

        following = ensureDeferred(next_one())
        trigger = Trigger(self.reactor, given_up.cancel)
        self.addCleanup(trigger.close)

        # In one round of events: the trigger goes off, then all pipes of the first program close.
        trigger.pull()
        os.kill(child, signal.SIGKILL)
        while not _is_zombie(child):
            pass
        self.assertEqual(json.loads(await following)["submission"], "following")

    async def test_stuck_removal(self) -> None:
        """A working folder full of nested folders that nobody may enter goes too."""
        nest = (
            "import os\nfor _ in range(1500):\n os.mkdir('d' * 100); os.chdir('d' * 100)\n"
            "os.chmod('.', 0)\nos.write(3, b'{}')"
        )
        self.assertEqual(await self.output(self.python(nest)), "{}")
        await self.until_clean()

    async def test_cancelled_again_and_again(self) -> None:
        """Cancelling at any moment of a program's life leaves no process, folder or descriptor."""
        grader = self.shell("sleep 0.05; echo {} >&3")
        await self.ask(grader)
        before = open_descriptors()
        ends: list[Any] = []
        for number in range(40):
            work = self.ask(grader)
            cancelling = self.reactor.callLater(number * 0.002, work.cancel)
            work.addBoth(self.note_end, cancelling, ends)
        await until(lambda: len(ends) == 40, "all to end", self.reactor)
        await self.until_clean()
        await until(lambda: open_descriptors() <= before, "descriptors to be closed", self.reactor)

    async def test_neighbours(self) -> None:
        """Many short programs at once, over and over, never get into each other's pipes."""
        grader = self.shell("cat >&3; echo noise; echo noise >&2")
        for start in range(0, 200, 20):
            work = {f"id-{number}": self.ask(grader, submission=f"id-{number}") for number in range(start, start + 20)}
            for submission, each in work.items():
                self.assertEqual(json.loads((await each).reply)["submission"], submission)

    async def test_log(self) -> None:
        """What a program says beside its verdict is in the debug log, without control characters."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        await self.ask(self.shell("printf 'hel\\033lo' >&2; echo {} >&3"))
        [event] = [event for event in events if "complaint" in event]
        self.assertEqual((event["complaint"], event["log_level"].name), ("hel lo", "debug"))

    def patient(self, script: str) -> command.CommandGrader:
        """A grader that runs a shell script, and waits a minute for those that hold its descriptors."""
        grader = command.CommandGrader(
            command=command.CommandLine(
                words=("/bin/sh", "-c", script), environment=os.environ, setsid=which("setsid") or ""
            ),
            workspace=Workspace(self.base),
            leash=Leash(max_reply=1024, max_output=1024, kill_after=60.0, drain=60.0),
            fetcher=None,
            reactor=self.reactor,
        )
        grader.startService()
        self.addCleanup(grader.stopService)
        return grader

    def note_end(self, result: Any, cancelling: Any, ends: list[Any]) -> None:
        """Write down how grading ended; it need not be cancelled any more."""
        if cancelling.active():
            cancelling.cancel()
        ends.append(result)

    async def pid_in(self, name: str) -> int:
        """The number that the only program running writes into a file of its folder."""
        found: list[int] = []

        def look() -> bool:
            for path in glob(f"{self.base}/*/*/{name}"):
                if os.path.getsize(path):
                    with open(path) as file:
                        found.append(int(file.read()))
            return bool(found)

        await until(look, "the program to run", self.reactor)
        return found[0]
