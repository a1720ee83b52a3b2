"""Tests for :mod:`edxagent.lms.updater.html`."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.config.lms_values import ALLOWED_TAGS
from edxagent.lms.updater.html import (
    DEEPEST,
    FEW_TAGS,
    LONGEST,
    MOST_GROWTH,
    MOST_TAGS,
    NOTHING_LEFT,
    URL_SCHEMES,
    Sanitizer,
)
from edxagent.verdict import check_message

SANITIZER = Sanitizer(ALLOWED_TAGS | {"img", "font"})
HOSTILE = (
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//evil.example/x.js></SCRIPT>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<p onclick=alert(1)>x</p>",
    "<img src=x onerror=alert(1)>",
    "<img src='data:image/svg+xml;base64,PHN2Zz4='>",
    "<svg onload=alert(1)><circle/></svg>",
    "<math><mi xlink:href='javascript:alert(1)'>x</mi></math>",
    "<a href='javascript:alert(1)'>x</a>",
    "<a href='java\tscript:alert(1)'>x</a>",
    "<a href='java&#1;script:alert(1)'>x</a>",
    "<a href='&#14;javascript:alert(1)'>x</a>",
    "<a href='vbscript:x'>x</a>",
    "<iframe src='https://evil.example'></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data='x.swf'></object><embed src='x.swf'>",
    "<form action='https://evil.example'><input name=a><button formaction=x>go</button></form>",
    "<style>body { display: none }</style>",
    "<p style='position: fixed; top: 0; background: url(javascript:x)'>x</p>",
    "<meta http-equiv=refresh content='0; url=https://evil.example'>",
    "<base href='https://evil.example/'><link rel=stylesheet href=x>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'></noscript>",
    "<template><script>alert(1)</script></template>",
    "<!--><script>alert(1)</script>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "<?xml-stylesheet href='javascript:x'?>x",
    "<title><p title='</title><script>alert(1)</script>'>",
    "<math><style><a title='</style><img src=x onerror=alert(1)>'>",
    "<xmp><p title='</xmp><script>alert(1)</script>'>",
    "<p id=problem name=csrf>x</p>",
)
ATTRIBUTES = "alt class color colspan dir face height href lang rel rowspan size src start title width"

PIECES = "b /b p /p i /i div /div td /td table /table a /a li /li span /span"


class Seen(HTMLParser):
    """What a browser would find in a text, nearly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.addresses.extend(value or "" for name, value in attrs if name in ("href", "src"))


class SanitizerTests(SynchronousTestCase):
    """What the learner is shown."""

    def assert_safe(self, cleaned: str) -> None:
        """Nothing acts, and the LMS can take it."""
        check_message(cleaned)
        seen = Seen(cleaned)
        self.assertLessEqual(seen.tags, ALLOWED_TAGS | {"img", "font"}, cleaned)
        self.assertLessEqual(seen.attributes, set(ATTRIBUTES.split()), cleaned)
        for address in seen.addresses:
            bare = re.sub("[\x00-\x20\x7f]", "", address)  # which is what browsers do at worst
            scheme = re.match(r"([a-z][a-z0-9+.-]*):", bare, re.IGNORECASE)
            self.assertTrue(scheme is None or scheme[1].lower() in URL_SCHEMES, address)

    def test_what_graders_write_stays(self) -> None:
        """Marks, lists, tables, program output and links are shown as they were written."""
        for msg in (
            "<p>Great!</p>",
            'plain text, "quoted" &amp; more',
            '<div class="test"><h4>Test 1</h4><pre>1 &lt; 2\n3</pre></div>',
            '<table class="r"><thead><tr><th>a</th></tr></thead><tbody><tr><td colspan="2">b</td></tr></tbody></table>',
            "<ul><li><b>1</b></li><li><code>x = 1</code><br></li></ul>",
            "naïve 数学 \U0001f600",
        ):
            self.assertEqual(SANITIZER.clean(msg), msg)

    def test_links(self) -> None:
        """A link stays, without a way back for the page that it opens."""
        self.assertEqual(
            SANITIZER.clean("<a href='https://docs.example.org/'>x</a>"),
            '<a href="https://docs.example.org/" rel="noopener noreferrer">x</a>',
        )

    def test_hostile(self) -> None:
        """Nothing that acts is left; what the LMS can't read doesn't come about."""
        for msg in HOSTILE:
            self.assert_safe(SANITIZER.clean(msg))
            self.assert_safe(SANITIZER.clean(f"<table>{msg}<p>"))

    def test_nothing_left(self) -> None:
        """A message of which nothing is left becomes a harmless one."""
        for msg in ("<script>alert(1)</script>", "<!-- x -->", "<style>p { }</style> \n", "<?php x ?>"):
            self.assertEqual(SANITIZER.clean(msg), NOTHING_LEFT)
        self.assert_safe(NOTHING_LEFT)

    def test_characters_in_disguise(self) -> None:
        """A character that XML forbids may be written as a reference: it is replaced, and joins nothing."""
        self.assertEqual(SANITIZER.clean("a&#1;b&#x1F;c&#xFFFE;d"), "a\ufffdb\ufffdc\ufffdd")
        self.assertNotIn("javascript:", SANITIZER.clean("<a href='java&#1;script:alert(1)'>x</a>"))

    def test_elements_are_the_operators_choice(self) -> None:
        """Others lose their tags and keep their text."""
        self.assertEqual(Sanitizer({"b"}).clean("<p>a <b>b</b></p>"), "a <b>b</b>")
        self.assertEqual(Sanitizer(frozenset()).clean("<p>a <b>b</b></p>"), "a b")

    @given(st.text() | st.lists(st.sampled_from([*HOSTILE, "<", ">", "</p>", "<p ", "'", '"', "&#", "x"])).map("".join))
    def test_anything(self, msg: str) -> None:
        """Whatever the message, the result is safe and one that the LMS can take."""
        self.assert_safe(SANITIZER.clean(msg))

    @given(st.sampled_from(HOSTILE))
    def test_twice(self, msg: str) -> None:
        """To sanitise again changes nothing."""
        cleaned = SANITIZER.clean(msg)
        self.assertEqual(SANITIZER.clean(cleaned), cleaned)


class CostTests(SynchronousTestCase):
    """Messages that a parser of HTML would take long for are shown as text."""

    def assert_text(self, msg: str) -> None:
        """It is shown as text, whole."""
        self.assertEqual(html.unescape(SANITIZER.clean(msg)), f"<pre>{msg}</pre>")

    def test_a_long_report(self) -> None:
        """A report on hundreds of tests, with the end tags that HTML asks for, is shown as it is."""
        row = '<tr><td class="ok"><p>Test <b>%d</b><td><pre>1 &lt; 2</pre>'
        rows = "".join(row % number for number in range(2000))
        cleaned = SANITIZER.clean(f"<div><table>{rows}</table><ul>{'<li><p>x' * 500}</ul><hr><p>Done<br></div>")
        self.assertEqual((cleaned.count("<tr>"), cleaned.count("</pre>"), cleaned.count("</li>")), (2000, 2000, 500))
        self.assertNotIn("&lt;tr", cleaned)

    def test_deep(self) -> None:
        """Elements in elements in elements."""
        self.assert_text("<div>" * 10_000)
        self.assert_text("<div>" * 1000 + "</div>" * 1000)
        self.assertIn("<div>", SANITIZER.clean(("<div>" * DEEPEST + "</div>" * DEEPEST) * 20))

    def test_what_is_opened_again_and_again(self) -> None:
        """Formatting that isn't closed, or only seems to be: the result would be many times as long."""
        for piece in (
            "<p><font size={0}>",
            "<p><b class={0}></p>",
            "<p><b class=x{0}></p><table><tr><td></b></td></tr></table>",
            "<p><b class=x{0}></p><i title='</b>'></i>",
            "<p><b class=x{0}></p><!-- </b> -->",
            '<p><b class=x{0}></p><p title="</b>">',
            "<p><b class=x{0}></p></b><xmp></b></xmp>",
        ):
            for count in (30, 70, 3000):
                msg = "".join(piece.format(number) for number in range(count))
                cleaned = SANITIZER.clean(msg)
                self.assertLess(cleaned.count("<"), 2000)
                if count == 3000:
                    self.assertNotIn("<b", cleaned.replace("&lt;", ""))

    def test_large(self) -> None:
        """More text or more tags than anybody reads."""
        self.assert_text("<p>" + "x" * LONGEST)
        self.assert_text("<br>" * (MOST_TAGS + 1))

    def test_manual(self) -> None:
        """The manual tells the same bounds."""
        manual = " ".join((Path(__file__).parent.parent / "docs" / "messages.md").read_text().split())
        bounds = f"more than {LONGEST // 1024} Ki characters or {MOST_TAGS:,} tags, or badly nested with more than"
        self.assertIn(f"{bounds} {FEW_TAGS}", manual)

    def test_without_pre(self) -> None:
        """Where that element isn't allowed, the text stands alone."""
        self.assertEqual(Sanitizer({"p"}).clean("<div>" * 1000), "&lt;div&gt;" * 1000)

    @given(st.lists(st.sampled_from(PIECES.split())))
    def test_growth(self, names: list[str]) -> None:
        """Whatever is nested in what, again and again, the result is bounded by what was written."""
        msg = "".join(f"<{name}>" for name in names) * 40
        self.assertLessEqual(SANITIZER.clean(msg).count("<"), MOST_GROWTH * (msg.count("<") + FEW_TAGS))
