"""An LMS as far as edx-submissions goes: the real app and its real views, served by Django's own development server.

``tests/edx_submissions_lms.py`` starts it as a process. It is told its settings by a JSON line on its standard input,
then what to do by more of them; each has an ``id`` that its answer, a JSON line on the standard output, repeats. When
its input ends, so does the process.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from threading import Lock, Thread
from types import SimpleNamespace
from typing import Any

SETTINGS = json.loads(sys.stdin.readline())
FOLDER = Path(SETTINGS["folder"])
QUEUE_USER = ("bridge", "pässword")
OTHER_USER = ("learner", "pässword")

import django  # noqa: E402
from django.conf import settings  # noqa: E402

settings.configure(
    SECRET_KEY="of no importance",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    MEDIA_ROOT=str(FOLDER / "media"),
    MEDIA_URL="/media/",
    LOGGING_CONFIG=None,
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "django.contrib.sessions",
        "rest_framework",
        "submissions",
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(FOLDER / "lms.sqlite3"),
            # SQLite knows no row locks: the whole transaction has to be the lock that the views rely on.
            "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 60, "init_command": "PRAGMA synchronous = OFF"},
        }
    },
)
django.setup()

from django.contrib.auth.models import Group, User  # noqa: E402
from django.contrib.sessions.models import Session  # noqa: E402
from django.core.files.base import ContentFile  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from django.urls import include, path  # noqa: E402
from openedx_events.learning.signals import EXTERNAL_GRADER_SCORE_SUBMITTED  # noqa: E402
from submissions import api  # noqa: E402
from submissions.models import ExternalGraderDetail, Score  # noqa: E402
from submissions.views import xqueue  # noqa: E402

urlpatterns = [path("xqueue/", include("submissions.urls"))]

StartResponse = Callable[..., Any]


class Front:
    """In front of Django: counts requests, and treats the next ones as it was told.

    :ivar faults: last word of a path → what happens to its next requests, first come, first served: ``status`` (and
        ``body``) is answered at once, ``delay`` waits first, ``then`` is answered after the request took effect.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = Lock()
        self.counts: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.faults: dict[str, deque[dict[str, Any]]] = {}

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """A request."""
        word = environ["PATH_INFO"].strip("/").rpartition("/")[2]
        if SETTINGS.get("certificate"):
            environ["wsgi.url_scheme"] = "https"
        with self._lock:
            self.counts[f"{environ['REQUEST_METHOD']} {word}"] += 1
            waiting = self.faults.get(word)
            fault = waiting.popleft() if waiting else {}
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            time.sleep(fault.get("delay", SETTINGS.get("latency", 0.0)))
            if "status" in fault:
                return _answer(fault["status"], fault.get("body", "<h1>Oh!</h1>"), start_response)
            if "then" in fault:
                b"".join(self._application(environ, lambda *_: None))
                return _answer(fault["then"], "<h1>Oh!</h1>", start_response)
            return [b"".join(self._application(environ, start_response))]
        finally:
            with self._lock:
                self.at_once -= 1


def _answer(status: int, body: str, start_response: StartResponse) -> list[bytes]:
    data = body.encode()
    start_response(f"{status} So be it", [("Content-Type", "text/html"), ("Content-Length", str(len(data)))])
    return [data]


class Quiet(WSGIRequestHandler):
    """Django's handler without its log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class LMS:
    """What the test may ask for: each public method is a command."""

    def __init__(self) -> None:
        call_command("migrate", verbosity=0)
        queue_user = User.objects.create_user(QUEUE_USER[0], password=QUEUE_USER[1])
        queue_user.groups.add(Group.objects.create(name="xqueue"))
        User.objects.create_user(OTHER_USER[0], password=OTHER_USER[1])
        self._front = Front(get_wsgi_application())
        self._port = 0
        self._server: Any = None
        self._failing_signals = 0
        self._events: list[dict[str, Any]] = []
        EXTERNAL_GRADER_SCORE_SUBMITTED.connect(self._submitted)
        stale = SETTINGS.get("stale", 300.0)
        # The view's five minutes, as long as this test says.
        xqueue.timedelta = lambda minutes: timedelta(seconds=stale * minutes / 5)
        self.up()

    def up(self) -> int:
        """Listen, always on the same port; returns it."""
        self._server = ThreadedWSGIServer(("127.0.0.1", self._port), Quiet)
        if SETTINGS.get("certificate"):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(SETTINGS["certificate"], SETTINGS["key"])
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        self._server.set_app(self._front)
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self._port

    def down(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    def create(
        self, queue: str, count: int, files: dict[str, str] | None = None, points: int = 1, answer: str = "print(1)"
    ) -> list[int]:
        """Have learners submit; returns the submissions' ids."""
        ids = []
        with transaction.atomic():
            for _ in range(count):
                number = ExternalGraderDetail.objects.count()
                item = {
                    "student_id": f"student-{number}",
                    "course_id": "course-v1:MITx+6.002x+2026",
                    "item_id": "block-v1:MITx+6.002x+2026+type@problem+block@divider",
                    "item_type": "problem",
                }
                uploads = {name: SimpleNamespace(file=ContentFile(text, name)) for name, text in (files or {}).items()}
                detail = api.create_external_grader_detail(
                    item, answer, queue, f"key-{number}", "grade.py", points, files=uploads
                )
                ids.append(detail.submission.id)
        return ids

    def rows(self) -> list[dict[str, Any]]:
        """Every submission, as the LMS has it."""
        return [
            {
                "id": detail.submission.id,
                "queue": detail.queue_name,
                "status": detail.status,
                "key": detail.pullkey,
                "reply": detail.grader_reply,
                "failures": detail.num_failures,
                "points": [score.points_earned for score in Score.objects.filter(submission=detail.submission)],
            }
            for detail in ExternalGraderDetail.objects.select_related("submission").order_by("submission__id")
        ]

    def statuses(self) -> dict[str, int]:
        """Status → how many."""
        return dict(Counter(ExternalGraderDetail.objects.values_list("status", flat=True)))

    def events(self) -> list[dict[str, Any]]:
        """The scores that the LMS's courseware was told of."""
        return self._events

    def counts(self) -> dict[str, int]:
        """Method and last word of a path → how many requests there were; ``at once`` is the most at one time."""
        return {**self._front.counts, "at once": self._front.most_at_once}

    def fault(self, word: str, *, times: int = 1, **fault: Any) -> None:
        """Treat the next requests for a path like this."""
        self._front.faults.setdefault(word, deque()).extend([fault] * times)

    def no_faults(self) -> None:
        """Treat requests well from now on."""
        self._front.faults.clear()

    def fail_signals(self, times: int) -> None:
        """Have the courseware raise so often when it is told of a score."""
        self._failing_signals = times

    def end_sessions(self) -> None:
        """Log everybody out."""
        Session.objects.all().delete()

    def age(self, seconds: float) -> None:
        """Make every submission's last change of status older."""
        for detail in ExternalGraderDetail.objects.all():
            detail.status_time -= timedelta(seconds=seconds)
            detail.save(update_fields=["status_time"])

    def _submitted(self, score: Any, **_: Any) -> None:
        if self._failing_signals:
            self._failing_signals -= 1
            raise RuntimeError("the courseware isn't well")
        self._events.append({"id": score.submission_id, "points": score.points_earned, "reply": score.score_msg})


def main() -> None:
    """Obey until the input ends."""
    lms = LMS()
    print(json.dumps({"id": 0, "result": lms._port}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        result = getattr(lms, command["do"])(**command["with"])
        connection.close()
        print(json.dumps({"id": command["id"], "result": result}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    sys.modules[Path(__file__).stem] = sys.modules["__main__"]
    main()
