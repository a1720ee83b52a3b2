"""Makes the HTML that a grader wrote for the learner safe to show, and bounded in what it costs to read.

The LMS puts ``msg`` unescaped into its page, and what a learner's program printed is often in it. Beside scripts there
are messages of a few KB that a parser of HTML takes seconds for: it must open again each ``<font>`` or ``<b>`` that
wasn't closed, at every ``<p>`` that follows
(https://html.spec.whatwg.org/multipage/parsing.html#reconstruct-the-active-formatting-elements). Messages that may be
of that kind are shown as plain text, so that no grade is held up by its message.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Set

import nh3

LONGEST = 160 * 1024
"""Characters of a message beyond which it is shown as text."""
MOST_TAGS = 20_000
FEW_TAGS = 150
"""With more, a message must be nested without a fault, at most :data:`DEEPEST` deep."""
DEEPEST = 30
MOST_GROWTH = 4

NOTHING_LEFT = "The grader's message can't be shown."
"""In the place of a message of which nothing is left."""

ATTRIBUTES = {
    "*": {"class", "dir", "lang", "title"},
    "a": {"href"},
    "font": {"color", "face", "size"},
    "img": {"alt", "height", "src", "width"},
    "ol": {"start"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan"},
}
URL_SCHEMES = {"http", "https", "mailto"}

_WITHOUT_END = "area base br col embed hr img input link meta param source track wbr"
_BLOCKS = "blockquote details div dl h1 h2 h3 h4 h5 h6 hr ol pre section summary table ul"
_CELLS = frozenset({"p", "td", "th"})
_ROWS = _CELLS | {"tr"}
_PARTS: Mapping[str, Set[str]] = {
    "p": {"p"},
    "li": {"p", "li"},
    "dd": {"p", "dd", "dt"},
    "dt": {"p", "dd", "dt"},
    "td": _CELLS,
    "th": _CELLS,
    "tr": _ROWS,
    "tbody": _ROWS | {"tbody", "tfoot", "thead"},
    "tfoot": _ROWS | {"tbody", "tfoot", "thead"},
    "thead": _ROWS | {"tbody", "tfoot", "thead"},
}
_VOID = frozenset(_WITHOUT_END.split())
# What ends when such an element begins, though there is no end tag; and what may lack its own in such an element.
_ENDED_BY: Mapping[str, Set[str]] = {**{name: {"p"} for name in _BLOCKS.split()}, **_PARTS}
_ENDED_WITH: Mapping[str, Set[str]] = {name: set(_PARTS) for name in _ENDED_BY if name != "p"}
_TAG = re.compile(
    r"<(?P<end>/?)(?P<name>[a-z][a-z0-9]*)"
    r"(?:\s+[a-z][a-z0-9-]*(?:=(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>=`]+))?)*\s*/?>",
    re.IGNORECASE | re.ASCII,
)
# As in edxagent.verdict; "&#1;" gives one after the check there.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class Sanitizer:
    """Knows which elements may stay.

    :param tags: their names, lower case.
    """

    def __init__(self, tags: Set[str]) -> None:
        self._tags = set(tags)
        self._attributes = {tag: names for tag, names in ATTRIBUTES.items() if tag == "*" or tag in tags}

    def clean(self, msg: str) -> str:
        """``msg`` with nothing in it that acts; never empty, without the characters that XML forbids."""
        cleaned = self._as_html(msg) if _is_cheap(msg) else None
        if cleaned is None or cleaned.count("<") > MOST_GROWTH * (msg.count("<") + FEW_TAGS // 4):
            cleaned = self._as_text(msg)
        # Replaced, not removed: what stood on both sides must not come together.
        cleaned = _FORBIDDEN.sub("\ufffd", cleaned)
        return cleaned if cleaned.strip() else NOTHING_LEFT

    def _as_html(self, msg: str) -> str:
        return nh3.clean(
            msg,
            tags=self._tags,
            attributes=self._attributes,
            url_schemes=URL_SCHEMES,
            clean_content_tags={"script", "style"},
        )

    def _as_text(self, msg: str) -> str:
        text = html.escape(msg)
        return f"<pre>{text}</pre>" if "pre" in self._tags else text


def _is_cheap(msg: str) -> bool:
    tags = msg.count("<")
    if tags > MOST_TAGS or len(msg) > LONGEST:
        return False
    return tags <= FEW_TAGS or _is_nested_well(msg, tags)


def _is_nested_well(msg: str, tags: int) -> bool:
    """Whether each of so many ``<`` begins a plain tag, and each end tag ends what was opened last.

    End tags that HTML lets one leave out may be missing.
    """
    opened: list[str] = []
    for tag in _TAG.finditer(msg):
        tags -= 1
        name = tag["name"].lower()
        ended = (_ENDED_WITH if tag["end"] else _ENDED_BY).get(name, ())
        while opened and opened[-1] in ended and not (tag["end"] and opened[-1] == name):
            opened.pop()
        if tag["end"]:
            if not opened or opened.pop() != name:
                return False
        elif name not in _VOID:
            opened.append(name)
            if len(opened) > DEEPEST:
                return False
    return not tags
