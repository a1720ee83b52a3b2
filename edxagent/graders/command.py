"""Kind ``command``: a program graded by starting it, once a submission.

*What it gets.* One line of JSON on standard input, an object of texts (``attempt`` is a number): ``submission``,
``queue``, ``attempt``, ``xqueue_body`` and ``xqueue_files`` verbatim, and ``student_response``, ``grader_payload`` and
``student_info``, which are the three parts of ``xqueue_body``. And an object, ``files``: what the LMS calls a file that
was uploaded → its path in the working folder, where it is already. Only files on ``file_hosts =`` are fetched. Without
that key none are, and ``files`` is empty: there is ``xqueue_files`` for a program that fetches them itself.

*What it answers.* The verdict, ``{"correct": true, "score": 1, "msg": "<p>Well done.</p>"}``, on **descriptor 3**, and
exit status 0. Standard output can't be a verdict: that is where students' programs write. A grader should start those
without descriptor 3, as Python's ``subprocess`` does unless told otherwise.

*Where it runs.* In a session and process group of its own, in a fresh folder that is removed afterwards (also its
``HOME`` and ``TMPDIR``), with no environment but ``PATH``, ``LANG`` and what ``environment =`` lets through.

*How it ends.* It is told TERM, and ``kill_after`` later KILL, when the submission's time is over. What is left of its
group when it exits is killed.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from zope.interface import implementer

from edxagent.config import parsers
from edxagent.config.keys import REQUIRED, Key
from edxagent.errors import BadReply, GraderCrashed, GraderError, GraderUnavailable
from edxagent.graders.attachments import host_list
from edxagent.graders.process import CHILD_FDS, STDERR, STDOUT, Child, Leash
from edxagent.graders.workspace import Workspace, default_base, remove_tree
from edxagent.interfaces import GraderTools, IGrader, IGraderFactory
from edxagent.model import GraderRequest, GraderResponse
from edxagent.tasks import Tasks
from edxagent.words import brief

if TYPE_CHECKING:
    from edxagent.graders.files import FileFetcher

LEAST_OUTPUT = 4096
"""Bytes; what a shell complains about must fit, or a program that didn't start would look like one that crashed."""

DEFAULT_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}

# Asking spawnProcess for a folder would make it fork, which is slow, and hide a failed exec behind an exit status of 1.
# So a shell enters the folder and becomes the program. What the shell itself complains about starts with its name, $0,
# which is a secret that the program never learns: so no program can be mistaken for one that didn't start.
LAUNCH = 'cd -- "$1" && shift && exec "$@"'


@frozen(kw_only=True)
class CommandLine:
    """What is run.

    :ivar words: the program, as an absolute path where it could be found, and its arguments.
    :ivar setsid: the path of util-linux's ``setsid``.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    setsid: str


def submission_line(request: GraderRequest, files: Mapping[str, str]) -> bytes:
    """What the program reads."""
    document = {
        "submission": request.submission,
        "queue": request.queue,
        "attempt": request.attempt,
        "xqueue_body": request.body,
        "xqueue_files": request.files,
        "student_response": request.student_response,
        "grader_payload": request.grader_payload,
        "student_info": request.student_info,
        "files": files,
    }
    return json.dumps(document).encode() + b"\n"


def failure_of(child: Child, launcher: str, program: str) -> GraderError | None:
    """Why a child that is gone gave no verdict, or ``None`` if it gave one.

    :param launcher: the shell's secret name.
    """
    complaint = bytes(child.tails[STDERR])
    said = f": {brief(complaint)}" if complaint else ""
    if child.exit_status and complaint.startswith(launcher.encode() + b":"):
        why = brief(complaint).rpartition(": ")[2]
        return GraderUnavailable(f"{program} could not be started: {why}; mend [grader] command")
    if child.overflow:
        return BadReply("the command wrote more than [results] max_reply on descriptor 3")
    if child.exit_signal is not None:
        name = signal.strsignal(child.exit_signal) or "unknown"
        return GraderCrashed(f"the command was ended by signal {child.exit_signal} ({name}){said}")
    if child.exit_status != 0:
        return GraderCrashed(f"the command ended with exit status {child.exit_status}{said}")
    if not child.reply:
        return BadReply("the command wrote no verdict on descriptor 3, though its exit status was 0")
    return None


@implementer(IGrader)
class CommandGrader(Service):
    """Starts a program for each submission.

    :param fetcher: gets the files that a submission names; ``None`` if nobody does.
    """

    _log = Logger()

    def __init__(
        self, command: CommandLine, workspace: Workspace, leash: Leash, fetcher: FileFetcher | None, reactor: Any
    ) -> None:
        self._command = command
        self._fetcher = fetcher
        self._workspace = workspace
        self._leash = leash
        self._reactor = reactor
        self._removals = Tasks()

    def startService(self) -> None:
        """Clear away what agents left behind that were killed."""
        super().startService()
        self._removals.launch(self._remove_leftovers(), "clearing away old working folders")

    def stopService(self) -> Deferred[None]:
        """Fires when the last working folder is gone, and the last connection."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._fetcher is not None:
            await self._fetcher.close()
        await self._removals.when_idle()
        self._workspace.close()

    async def grade(self, request: GraderRequest) -> GraderResponse:
        """See :meth:`edxagent.interfaces.IGrader.grade`.

        Cancelled, it ends when the process is gone; cancelled again, it doesn't wait for TERM to be heeded.
        """
        try:
            folder = self._workspace.make()
        except OSError as error:
            raise GraderUnavailable(f"no working folder: {error}; mend [grader] work_dir") from error
        launcher = f"launcher-{secrets.token_hex(8)}"
        try:
            files = await self._fetcher.fetch(request.files, folder) if self._fetcher is not None else {}
            child = Child(self._reactor, submission_line(request, files), self._leash)
            self._spawn(child, launcher, folder)
            await self._end_of(child)
        finally:
            self._discard(folder)
        if child.tails[STDERR] or child.tails[STDOUT]:
            self._log.debug(
                "submission {submission}: the command wrote {output} and {complaint}",
                submission=request.submission,
                output=brief(child.tails[STDOUT][-200:]),
                complaint=brief(child.tails[STDERR][-2000:], 2000),
            )
        failure = failure_of(child, launcher, self._command.words[0])
        if failure is not None:
            raise failure
        return GraderResponse(reply=bytes(child.reply))

    def _spawn(self, child: Child, launcher: str, folder: str) -> None:
        arguments = (self._command.setsid, "/bin/sh", "-c", LAUNCH, launcher, folder, *self._command.words)
        environment = {**self._command.environment, "HOME": folder, "TMPDIR": folder}
        try:
            self._reactor.spawnProcess(child, arguments[0], arguments, environment, childFDs=CHILD_FDS)
        except OSError as error:
            raise GraderUnavailable(f"no process could be started: {error.strerror or error}") from error

    async def _end_of(self, child: Child) -> None:
        cancelled = False
        while not child.gone:
            try:
                await child.when_gone()
            except CancelledError:
                cancelled = True
                child.stop()
        if cancelled:
            raise CancelledError()

    def _discard(self, folder: str) -> None:
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._removals.launch(self._remove(folder), "removing a working folder")

    async def _remove(self, folder: str) -> None:
        """Remove a folder that isn't empty, in a thread: it may hold a million files."""
        try:
            await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), remove_tree, folder)
        except OSError as error:
            self._log.warn("{folder} could not be removed now: {reason}", folder=folder, reason=str(error))

    async def _remove_leftovers(self) -> None:
        try:
            self._workspace.open()
        except OSError as error:
            self._log.error("no working folders can be made: {reason}; mend [grader] work_dir", reason=str(error))
            return
        for folder in self._workspace.leftovers():
            await self._remove(folder)


@implementer(IGraderFactory)
class CommandFactory:
    """Kind ``command``."""

    kind = "command"
    keys = (
        Key("command", parsers.command_line, REQUIRED, "the program and its arguments; file names written in full"),
        Key("environment", parsers.name_list, ("PATH", "LANG"), "the agent's environment variables that it may see"),
        Key("work_dir", parsers.path, "", "where working folders are made; private to the agent's user"),
        Key(
            "kill_after",
            parsers.seconds,
            2.0,
            "seconds from TERM to KILL when its time is over; KILL comes after 10 s in any case",
        ),
        Key(
            "max_output",
            parsers.size,
            64 * 1024,
            "how much of the end of its output is kept for the log: at least 4 KiB",
        ),
        Key(
            "file_hosts",
            host_list,
            (),
            "the hosts that uploaded files are fetched from, each host or host:port; without it none are fetched",
        ),
        Key("max_files", parsers.count_between(1, 1000), 20, "how many files a submission may have"),
        Key("max_file_size", parsers.size, 10 * 1024**2, "how large all files of a submission may be together"),
        Key("file_timeout", parsers.seconds, 15.0, "seconds for fetching all of them; should be less than timeout"),
    )

    def build(self, options: Mapping[str, Any], tools: GraderTools) -> CommandGrader:
        """See :meth:`edxagent.interfaces.IGraderFactory.build`."""
        setsid = shutil.which("setsid")
        if setsid is None:
            raise ValueError("command: the program setsid is missing; install util-linux")
        allowed = {name: os.environ[name] for name in options["environment"] if name in os.environ}
        environment = {**DEFAULT_ENVIRONMENT, **allowed}
        program, *arguments = options["command"]
        if os.sep in program:
            program = os.path.abspath(program)
        else:
            program = shutil.which(program, path=environment["PATH"]) or program
        return CommandGrader(
            command=CommandLine(words=(program, *arguments), environment=environment, setsid=setsid),
            workspace=Workspace(options["work_dir"] or default_base()),
            leash=Leash(
                max_reply=tools.max_reply,
                max_output=max(options["max_output"], LEAST_OUTPUT),
                kill_after=options["kill_after"],
            ),
            fetcher=_make_fetcher(options, tools) if options["file_hosts"] else None,
            reactor=tools.reactor,
        )


def _make_fetcher(options: Mapping[str, Any], tools: GraderTools) -> FileFetcher:
    # An HTTP client takes more memory than the rest of this room: only who wants one has it.
    from edxagent.graders.files import FileFetcher, FileRules

    rules = FileRules(
        hosts=options["file_hosts"],
        most=options["max_files"],
        size=options["max_file_size"],
        timeout=options["file_timeout"],
    )
    return FileFetcher.make(rules, tools.concurrency, tools.reactor)


factory = CommandFactory()
