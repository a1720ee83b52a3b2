"""An LMS as far as external grading goes, made of the LMS's own code; ``tests/real_lms.py`` starts it as a process.

In front is the ``XQueueInterface`` of xblocks-contrib: a new one for each submission, as the LMS's ``XQueueService``
has it, so that each submission logs in anew. Behind the callback is, for each learner, a ``LoncapaProblem`` with a
``CodeResponse``. Only what Django's URLs, views and database do in between is written here, after
``courseware/block_render.py:xqueue_callback`` and ``xmodule/services.py:XQueueService`` of openedx-platform.

It is told what to do by JSON lines on its standard input: first its settings, then commands, each with an ``id`` that
its answer, a JSON line on the standard output, repeats. When its input ends, so does the process.
"""

from __future__ import annotations

import gettext
import json
import os
import re
import sys
import time
from base64 import b64decode
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from socket import SHUT_RDWR, socket
from threading import Lock, Thread
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote

if find_spec("pkg_resources") is None:
    # The package fs, which the LMS's HTML block imports, wants a module that setuptools 82 has no more.
    stand_in: Any = ModuleType("pkg_resources")
    stand_in.declare_namespace = lambda name: None
    stand_in.iter_entry_points = lambda *names: iter(())
    sys.modules["pkg_resources"] = stand_in

from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from lxml import etree

settings.configure()

from xblocks_contrib.problem.capa.capa_problem import LoncapaProblem, LoncapaSystem  # noqa: E402
from xblocks_contrib.problem.capa.xqueue_interface import XQueueInterface  # noqa: E402

COURSE = "course-v1:MITx+6.002x+2026"
BLOCK = "block-v1:MITx+6.002x+2026+type@problem+block@divider"
ROUTE = re.compile(r"/courses/(?P<course>[^/]+)/xqueue/(?P<user>\d+)/(?P<block>[^/]+)/score_update")
TROUBLES_KEPT = 20


class Learner:
    """One learner, and the problem as they see it."""

    def __init__(self, lms: LMS, number: int) -> None:
        self._number = number
        self._xqueue = Service(lms, number)
        self._problem: Any = None
        self._used_keys: set[str] = set()
        # The LMS stores an attempt only when the request that submitted it ends, and would ignore a verdict that came
        # sooner; that chance of its own is left out: a callback waits until the submission is through.
        self._lock = Lock()
        self.state: dict[str, Any] = {"correctness": None, "npoints": None, "msg": "", "queued": False, "attempts": 0}

    def submit(self, answer: str, payload: str, files: Mapping[str, bytes], queue: str) -> dict[str, Any]:
        """Press the button. What the learner is told: whether the answer was queued, and else why not."""
        with self._lock:
            problem = self._load(payload, queue, with_files=bool(files))
            uploads = [SimpleUploadedFile(name, content) for name, content in files.items()]
            try:
                problem.grade_answers({_response_of(problem).answer_id: uploads or answer})
            except Exception as error:  # the LMS would show its page for errors
                return {"queued": False, "message": f"the LMS raised {type(error).__name__}: {error}"}
            self._problem = problem
            self._show(attempts=self.state["attempts"] + 1)
            return {"queued": self.state["queued"], "message": self.state["msg"]}

    def take(self, reply: str, key: Any) -> str:
        """Take a grader's reply from a callback. A word on what became of it, or the exception of ``update_score``."""
        with self._lock:
            if self._problem is None:  # each submission so far failed
                return "stale"
            right = self._problem.correct_map.is_right_queuekey(_response_of(self._problem).answer_id, key)
            self._problem.update_score(reply, key)
            self._show()
            readable, *_ = _response_of(self._problem)._parse_score_msg(reply)
            if not readable:
                return "rejected"
            if right:
                self._used_keys.add(key)
                return "taken"
            return "repeated" if key in self._used_keys else "stale"

    def _load(self, payload: str, queue: str, with_files: bool) -> Any:
        """The problem as the course author wrote it, in this learner's state."""
        root = etree.Element("problem")
        response = etree.SubElement(root, "coderesponse", queuename=queue)
        etree.SubElement(response, "filesubmission" if with_files else "textbox")
        parameters = etree.SubElement(response, "codeparam")
        etree.SubElement(parameters, "grader_payload").text = payload
        system = LoncapaSystem(
            ajax_url="",
            anonymous_student_id=md5(str(self._number).encode()).hexdigest(),
            cache=None,
            can_execute_unsafe_code=lambda: False,
            get_python_lib_zip=lambda: None,
            DEBUG=False,
            i18n=gettext.NullTranslations(),
            render_template=lambda template, context: "<div/>",
            resources_fs=None,
            seed=self._number,
            xqueue=self._xqueue,
        )
        return LoncapaProblem(
            etree.tostring(root, encoding="unicode"),
            id="divider",
            capa_system=system,
            capa_block=self._xqueue.block,
            state=self._problem and self._problem.get_state(),
            seed=1,
            extract_tree=False,
        )

    def _show(self, **changes: int) -> None:
        """Replace the state whole, so that it can be read without the lock."""
        answer, shown = _response_of(self._problem).answer_id, self._problem.correct_map
        self.state = {
            **self.state,
            **changes,
            "correctness": shown.get_correctness(answer),
            "npoints": shown.get_property(answer, "npoints"),
            "msg": shown.get_msg(answer),
            "queued": shown.is_queued(answer),
        }


class Service:
    """What a ``CodeResponse`` wants to have as ``capa_system.xqueue``."""

    default_queuename = "MITx-6.002x"

    def __init__(self, lms: LMS, number: int) -> None:
        self._lms = lms
        self._number = number
        self.block = SimpleNamespace(display_name="divider", location=BLOCK)

    @property
    def interface(self) -> Any:
        """A new client, which isn't logged in."""
        return XQueueInterface(self._lms.gateway, self._lms.credentials, None, block=self.block)

    def construct_callback(self, dispatch: str = "score_update") -> str:
        """Where the verdict has to be posted."""
        return f"{self._lms.callback_url}/courses/{COURSE}/xqueue/{self._number}/{BLOCK}/{dispatch}"


def _response_of(problem: Any) -> Any:
    """The problem's ``CodeResponse``."""
    (response,) = problem.responders.values()
    return response


class LMS:
    """All the learners, and what the callbacks are answered."""

    def __init__(self, gateway: str, username: str, password: str) -> None:
        self.gateway = gateway
        self.credentials = {"username": username, "password": password}
        self.callback_url = ""
        self.learners: dict[int, Learner] = {}
        self._lock = Lock()
        self._tally: Counter[str] = Counter()
        self._troubles: deque[str] = deque(maxlen=TROUBLES_KEPT)
        self._orders: deque[dict[str, Any]] = deque()

    # -- commands: each method is one, called with the fields of its JSON line ---------------------------------------

    def submit(
        self,
        learner: int,
        answer: str,
        payload: str,
        files: Mapping[str, str],
        queue: str,
        patience: float,
        pause: float,
    ) -> dict[str, Any]:
        """Submit, and again after ``pause`` seconds while it isn't queued and ``patience`` seconds haven't passed."""
        with self._lock:
            person = self.learners.setdefault(learner, Learner(self, learner))
        contents = {name: b64decode(content) for name, content in files.items()}
        deadline, tries = time.monotonic() + patience, 0
        while True:
            told = person.submit(answer, payload, contents, queue)
            tries += 1
            if told["queued"] or time.monotonic() + pause > deadline:
                return {**told, "tries": tries}
            time.sleep(pause)

    def states(self) -> dict[str, Any]:
        """Each learner's state, by their number."""
        return {str(number): learner.state for number, learner in sorted(self.learners.copy().items())}

    def callbacks(self) -> dict[str, Any]:
        """What became of the callbacks, counted, and the latest ones that went wrong."""
        with self._lock:
            return {**self._tally, "troubles": list(self._troubles)}

    def answer_next(self, count: int, status: int, delay: float, body: str, record: bool) -> None:
        """Answer the next ``count`` callbacks otherwise; with ``record`` they are taken first. 0 takes that back."""
        with self._lock:
            self._orders.clear()
            if count:
                self._orders.append({"count": count, "status": status, "delay": delay, "body": body, "record": record})

    # -- the callback's view ----------------------------------------------------------------------------------------

    def callback(self, path: str, form: str) -> tuple[int, bytes]:
        """Answer a POST: a status and a body."""
        order = self._next_order()
        if order is None:
            return self._view(path, form), b""
        if order["record"]:
            self._view(path, form)
        time.sleep(order["delay"])
        return order["status"], order["body"].encode()

    def _next_order(self) -> dict[str, Any] | None:
        with self._lock:
            self._tally["received"] += 1
            if not self._orders:
                return None
            self._tally["ordered"] += 1
            order = self._orders[0]
            order["count"] -= 1
            if not order["count"]:
                self._orders.popleft()
            return order

    def _view(self, path: str, form: str) -> int:
        try:
            outcome = self._take(path, form)
        except Exception as error:  # Django makes a 500 of it
            outcome, trouble = "raised", f"{path}: raised {type(error).__name__}: {error}"
        else:
            trouble = f"{path}: {outcome}"
        with self._lock:
            self._tally[outcome] += 1
            if outcome in ("rejected", "raised", "missing"):
                self._troubles.append(trouble)
        return {"missing": 404, "raised": 500}.get(outcome, 200)

    def _take(self, path: str, form: str) -> str:
        route = ROUTE.fullmatch(unquote(path))
        fields = parse_qs(form, keep_blank_values=True, errors="strict")
        if route is None or not {"xqueue_header", "xqueue_body"} <= fields.keys():
            return "missing"
        header = json.loads(fields["xqueue_header"][-1])
        if not isinstance(header, dict) or "lms_key" not in header:
            return "missing"
        if route["course"] != COURSE or route["block"] != BLOCK:
            return "missing"
        return self.learners[int(route["user"])].take(fields["xqueue_body"][-1], header["lms_key"])


class Door:
    """The web server, which can be closed and opened again at the same port."""

    def __init__(self, lms: LMS) -> None:
        self._handler = type("Handler", (CallbackHandler,), {"lms": lms})
        self._server: _Server | None = None
        self._port = 0

    def open(self) -> str:
        """Listen. Returns the URL."""
        if self._server is None:
            self._server = _Server(("127.0.0.1", self._port), self._handler)
            self._port = self._server.server_port
            Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        """Hang up on everybody, and refuse connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.hang_up()
            self._server = None


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self._connections: set[socket] = set()
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket, Any]:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody hung up: nobody's business."""

    def hang_up(self) -> None:
        for connection in self._connections.copy():
            with suppress(OSError):
                connection.shutdown(SHUT_RDWR)


class CallbackHandler(BaseHTTPRequestHandler):
    """One connection to the LMS."""

    lms: LMS
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def do_POST(self) -> None:
        """Pass a form to the view."""
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode("utf-8", "replace")
        status, body = self.lms.callback(self.path, form)
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def main() -> None:
    """Serve until the input ends."""
    configured = json.loads(sys.stdin.readline())
    lms = LMS(configured["gateway"], configured["username"], configured["password"])
    door = Door(lms)
    url = door.open()
    lms.callback_url = configured["callback_url"] or url
    writing = Lock()

    def say(**line: Any) -> None:
        with writing:
            print(json.dumps(line), flush=True)

    commands = {
        "submit": lms.submit,
        "states": lms.states,
        "callbacks": lms.callbacks,
        "answer_next": lms.answer_next,
        "open": door.open,
        "close": door.close,
    }

    def carry_out(id: int, command: str, arguments: Mapping[str, Any]) -> None:
        try:
            say(id=id, answer=commands[command](**arguments))
        except Exception as error:
            say(id=id, problem=f"{type(error).__name__}: {error}")

    # Learners are many and may have to wait; what the test asks meanwhile must not wait behind them.
    learners = ThreadPoolExecutor(configured["threads"])
    say(url=url)
    for line in sys.stdin:
        command = json.loads(line)
        if command["command"] == "submit":
            learners.submit(carry_out, **command)
        else:
            carry_out(**command)
    os._exit(0)  # and wait for nobody


if __name__ == "__main__":
    main()
