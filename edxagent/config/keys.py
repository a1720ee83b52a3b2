"""The schema of an INI section: its keys, how each value is read, its default and its help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

REQUIRED: Any = object()
"""The default of a key that must be given."""


@frozen
class Key:
    """One key of a section.

    :ivar name: as written in the file.
    :ivar parse: text → value; raises ``ValueError`` whose message says what is expected, such as
        ``expected a time in seconds, such as 30 or 0.5``. No parser accepts a control character.
    :ivar default: the value when the key is absent, or :data:`REQUIRED`.
    :ivar help: one line for people.
    :ivar secret: whether ``NAME_file`` is understood too, naming a file that holds the value. The value itself may then
        come from ``${VARIABLE}``, but may not be written down in the file.
    :ivar harmless: how a text begins that holds no secret even so, and may be written down: ``sqlite:``.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any = REQUIRED
    help: str = ""
    secret: bool = False
    harmless: str | None = None

    @property
    def expectation(self) -> str:
        """What its parser says when it refuses a text: ``expected …``."""
        try:
            self.parse("\0")
        except ValueError as error:
            return str(error)
        return "expected a value"
