"""What the tests of the shipped configuration files, ``etc/agent.ini`` and ``etc/lms.ini``, share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.ini import Problems, parse_ini
from edxagent.config.keys import REQUIRED, Key
from edxagent.config.manual import default_text

ETC = Path(__file__).parent.parent / "etc"

_COMMENTED = re.compile(r"^#(?=\[|\S+ =|    \S)", re.MULTILINE)
_VARIABLE = re.compile(r"\$\{\w+:-(.*)\}")


def in_force(ini: str) -> str:
    """A file with every setting and every section in force that is commented out, and every other comment still one."""
    return _COMMENTED.sub("", ini)


def settings_of(ini: str) -> dict[str, dict[str, str]]:
    """Section → key → value of each setting of a file, whether it is commented out or not."""
    problems = Problems("the shipped file")
    found = parse_ini(in_force(ini), problems)
    problems.raise_if_any()
    return {section: {key: entry.value for key, entry in entries.items()} for section, entries in found.items()}


def variables_of(ini: str) -> list[str]:
    """The environment variables that a file looks at as it is."""
    return re.findall(r"\$\{(\w+)", "\n".join(line for line in ini.split("\n") if not line.startswith("#")))


def assert_complete(case: SynchronousTestCase, ini: str, tables: Mapping[str, Sequence[Key]]) -> None:
    """Fail if a key isn't in a file, or one is there that there isn't, or one that has a default has another value.

    :param tables: section → its keys; sections that aren't in it aren't looked at.
    """
    shipped = settings_of(ini)
    for section, keys in tables.items():
        secrets = {f"{key.name}_file" for key in keys if key.secret}
        case.assertEqual(set(shipped[section]), {key.name for key in keys} | secrets, section)
        for key in keys:
            if key.default is not REQUIRED and default_text(key):
                value = _VARIABLE.sub(r"\1", shipped[section][key.name])
                case.assertEqual(key.parse(value), key.default, f"[{section}] {key.name}")
