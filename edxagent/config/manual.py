"""The manual of both configurations, ``docs/configuration.md``, made from the key tables so that it can't go stale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edxagent.config import agent_keys, lms_keys
from edxagent.config.keys import REQUIRED, Key

_HEAD = """\
# Configuration

`twistd -n edxagent --config etc/agent.ini` reads one INI file, and `twistd -n edxagent-lms --config etc/lms.ini`
another. Both files in `etc/` are complete, with comments, and work as they are. An unknown section or key is a mistake.
All mistakes are told at once, and nothing starts before they are mended.

* Times are in seconds, sizes in bytes, or in `KiB`, `MiB` or `GiB`.
* A line that begins with `#` or `;` is a comment, and so is what follows a blank and a `;`.
* An indented line goes on with the value above it.
* `=` alone stands between key and value, so that `course-v1:MITx+6.00x` can be a queue. Keys keep their case, and `%`
  is just a percent sign.
* `${NAME}` is the environment variable of that name, and `${NAME:-text}` has a default for when it is unset or empty. A
  dollar sign before a `{` is written `$$`.
* A secret is never written into the file. It is put in with `${NAME}`, or stands in a file of its own that a key ending
  in `_file` names. That file holds nothing else; a line break at its end doesn't count.
* A relative path counts from where the program was started.
* `--help` behind either command lists what can be overridden on the command line, and the exit statuses.

The environment that the shipped files look at: `EDXAGENT_BROKER_URL` (may hold a password); for the agent
`EDXAGENT_GRADER_URL`, `EDXAGENT_CONCURRENCY` and `EDXAGENT_JOURNAL`; for the LMS side `EDXAGENT_LMS_PASSWORD_HASH`,
`EDXAGENT_LMS_URL`, `EDXAGENT_FILES_FOLDER`, `EDXAGENT_FILES_URL`, and `EDXAGENT_DATABASE_URL` and `EDXAGENT_LEDGER_URL`
(may hold passwords).
"""

_BOTH = "What both may have."
_AGENT = "The agent's, beside those."
_LMS = """\
The LMS side's, beside those. A part runs when its section is there: `[gateway]`, `[bridge:NAME]` and `[updater]` may be
one process, or several on several machines. NAME is a word of your choice, and there may be several such sections. A
gateway needs `[users]`; a bridge needs `[updater]` and `[ledger]`; an updater needs a `[sink:NAME]` or a bridge."""

_INTRODUCTIONS = {
    "agent": "The program itself.",
    "broker": "The way to RabbitMQ. A password that is part of a URL must come from the environment.",
    "queues": "A line for each queue, its name and then `=`: `6002x-exam =`. Behind it there may be options, with\n"
    "blanks between them: `6002x-problems = weight=2`. A name has at most 200 bytes, doesn't begin with `amq.`, and\n"
    "doesn't end with `.dead`, which is how the queues for dead letters are called. The options:",
    "lms-config": "Instead of `[broker] urls` and `[queues]`: the agent asks an `edxagent-lms` for them, at its start\n"
    "and on `HUP`. While that can't be reached, the last good answer holds. Without this section nobody is asked.",
    "grader": "What grades. These two keys are common to all; the others depend on `kind`.",
    "results": "Where verdicts go, and which are believed.",
    "retry": "A submission that got no verdict waits in a retry queue on the broker, and is graded again. A time to\n"
    "wait that the grader asks for (`Retry-After`) is rounded up to the next of the pauses.",
    "breaker": "A grader that fails time and again is left alone: submissions stay in their queues, for other agents.",
    "quarantine": "A submission that was being graded when the agent died is graded alone the next time.",
    "failure": "What becomes known of a submission that got no verdict. It is kept in the queue's dead letters anyway.",
    "log": "What is written down about each event. Where to is twistd's business: `--logfile`, `--syslog`, or the\n"
    "terminal with `--nodaemon`. A log file makes room for a new one at 10 MB, and ten are kept. With `--logger` this\n"
    "section is not used.",
    "lms": "The program itself.",
    "gateway": "The front door, where XQueue was. The LMS submits here, and graders that poll find it here.",
    "users": "Who may log in to the gateway, LMSs and graders that poll: a line for each, the name and then `=` and\n"
    "the password's hash, as `edxagent password` prints it. Nobody can log in as a user whose hash is empty.",
    "agent-config:NAME": "What an agent is told that asks the gateway for its configuration with this key, as\n"
    "`[lms-config]` of `agent.ini` says. `edxagent api-key` makes a key and prints its hash. The gateway must listen\n"
    "on this machine alone or with TLS, or stand behind a proxy that has TLS.",
    "bridge:NAME": "An LMS that keeps submissions itself (edx-submissions) and hands them to graders that poll: they\n"
    "are fetched from there, and the verdicts posted there.",
    "updater": "What becomes of verdicts. Each is checked, its message cleaned, and it goes to every sink that it is\n"
    "meant for. What no LMS would take is parked in the queue's dead letters, such as `grading.results.dead`.",
    "sink:NAME": "Somewhere that verdicts go. This key is common to all; the others depend on `kind`.",
    "ledger": "Where each submission is, or what became of it, for `edxagent trace` and for bridges. It holds no\n"
    "learner's work. The database is `sqlite:///relative/path.db`, `sqlite:////absolute/path.db` or\n"
    "`postgresql://user:password@host/name`.",
}


def manual(graders: Mapping[str, Sequence[Key]], sinks: Mapping[str, Sequence[Key]]) -> str:
    """The manual, in Markdown.

    :param graders: kind of grader → its keys.
    :param sinks: kind of sink → its keys.
    """
    agent, lms = agent_keys.SECTIONS, lms_keys.SECTIONS
    both = {section: keys for section, keys in agent.items() if lms.get(section) == keys}
    kinds = {"grader": graders, "sink:NAME": sinks}
    parts = [_HEAD]
    for title, words, sections in (
        ("Both files", _BOTH, both),
        ("agent.ini", _AGENT, {section: keys for section, keys in agent.items() if section not in both}),
        ("lms.ini", _LMS, {section: keys for section, keys in lms.items() if section not in both}),
    ):
        parts += [f"## {title}", words]
        for section, keys in sections.items():
            parts += [f"### [{section}]", _INTRODUCTIONS[section], *([_table(keys)] if keys else [])]
            for kind, kind_keys in kinds.get(section, {}).items():
                parts += [f"#### kind = {kind}", _table(kind_keys)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def default_text(key: Key) -> str:
    """A key's default as it would be written in the file; empty where there is none."""
    default = key.default
    if default is REQUIRED or default is None:
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return " ".join(f"{each:.9g}" if isinstance(each, float) else each for each in default)
    if key.expectation.startswith("expected a size"):
        for factor, unit in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
            if default % factor == 0:
                return f"{default // factor} {unit}"
    return f"{default:.9g}" if isinstance(default, float) else str(default)


def _table(keys: Iterable[Key]) -> str:
    rows = ["| key | default | what it takes | meaning |", "|---|---|---|---|"]
    for key in keys:
        name = f"`{key.name}`" + (f" or `{key.name}_file`" if key.secret else "")
        default = "*required*" if key.default is REQUIRED else _code(default_text(key))
        expected = key.expectation.removeprefix("expected ").partition(", such as ")[0]
        cells = (name, default, expected, _sentence(key.help))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _code(text: str) -> str:
    return f"`{text}`" if text else "none"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
