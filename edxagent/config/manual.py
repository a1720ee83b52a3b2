"""The manual of the configuration, ``docs/configuration.md``, made from the key tables so that it can't go stale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edxagent.config.agent_keys import SECTIONS
from edxagent.config.keys import REQUIRED, Key
from edxagent.config.parsers import size

_HEAD = """\
# Configuration of the agent

`twistd -n edxagent --config etc/agent.ini` reads one INI file; `etc/agent.ini` is a complete one, with comments, that
works as it is. An unknown section or key is a mistake. All mistakes are told at once, and nothing starts before they
are mended.

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

The environment that the shipped file looks at: `EDXAGENT_BROKER_URL` (may hold a password), `EDXAGENT_GRADER_URL` and
`EDXAGENT_CONCURRENCY`.
"""

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
    "failure": "What becomes known of a submission that got no verdict. It is kept in the queue's dead letters anyway.",
    "log": "What is written down about each event. Where to is twistd's business: `--logfile`, `--syslog`, or the\n"
    "terminal with `--nodaemon`. A log file makes room for a new one at 10 MB, and ten are kept. With `--logger` this\n"
    "section is not used.",
}


def manual(kinds: Mapping[str, Sequence[Key]]) -> str:
    """The manual, in Markdown.

    :param kinds: kind of grader → its keys.
    """
    parts = [_HEAD]
    for section, keys in SECTIONS.items():
        parts += [f"## [{section}]", _INTRODUCTIONS[section], _table(keys)]
        if section == "grader":
            for kind, kind_keys in kinds.items():
                parts += [f"### kind = {kind}", _table(kind_keys)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def default_text(key: Key) -> str:
    """A key's default as it would be written in the file; empty where there is none."""
    default = key.default
    if default is REQUIRED or default is None:
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return " ".join(default)
    if key.parse is size:
        for factor, unit in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
            if default % factor == 0:
                return f"{default // factor} {unit}"
    return f"{default:g}" if isinstance(default, float) else str(default)


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
