"""Where a header says that its verdict belongs."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import URI

from edxagent.lms.sinks.address import LONGEST_HEADER, Address, Place, callback_address, origin, place_of

PATH = "/courses/course-v1:O+C+R/xqueue/7/block-v1:O+C+R+type@problem+block@abc/score_update"


def header(url: object) -> str:
    """An LMS's header."""
    return json.dumps({"lms_callback_url": url, "lms_key": "sesame", "queue_name": "q"})


class CallbackAddressTests(SynchronousTestCase):
    """``callback_address``."""

    def refused(self, text: str) -> str:
        """Why a header is refused: one line, without the key and the path."""
        reason = str(self.assertRaises(ValueError, callback_address, text))
        self.assertEqual(len(reason.splitlines()), 1)
        self.assertNotIn("sesame", reason)
        self.assertNotIn("score_update", reason)
        return reason

    def test_ordinary(self) -> None:
        """The LMS's own address is taken apart, and put together again unchanged."""
        address = callback_address(header(f"http://lms:8000{PATH}"))
        self.assertEqual((address.origin, address.path), ("http://lms:8000", PATH))
        self.assertEqual(address.url, f"http://lms:8000{PATH}")
        self.assertNotIn("score_update", repr(address))

    def test_normal_form(self) -> None:
        """However an origin is written, it is compared in one form."""
        for written, normal in {
            "HTTPS://LMS.Example.ORG:443": "https://lms.example.org",
            "http://lms:80": "http://lms",
            "https://lms:80": "https://lms:80",
            "http://lms:08000": "http://lms:8000",
            "https://bücher.example": "https://xn--bcher-kva.example",
            "https://XN--BCHER-KVA.example": "https://xn--bcher-kva.example",
            "http://[0:0:0:0:0:0:0:1]:8000": "http://[::1]:8000",
            "http://127.0.0.1": "http://127.0.0.1",
        }.items():
            self.assertEqual(origin(written), normal)
            self.assertEqual(callback_address(header(f"{written}/x")).origin, normal)

    def test_other_forms_are_others(self) -> None:
        """What some programs take for the same host is another one here."""
        for other in ("127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "127.0.0.1.", "[::ffff:127.0.0.1]"):
            self.assertNotEqual(callback_address(header(f"http://{other}/x")).origin, "http://127.0.0.1")

    def test_no_address(self) -> None:
        """A header that holds none is refused."""
        for text in (
            "",
            "sesame",
            "[]",
            "null",
            "{}",
            '{"lms_key": "sesame"}',
            header(None),
            header(["http://lms/"]),
            "[" * 10_000,
            '{"lms_callback_url": "http://lms/\ud800"}',
        ):
            self.assertIn("no lms_callback_url", self.refused(text))

    def test_too_long(self) -> None:
        """A header of 100 KB isn't looked at."""
        self.assertIn(str(LONGEST_HEADER), self.refused(header("http://lms/" + "x" * 100_000)))

    def test_hostile(self) -> None:
        """What could be read in two ways, or is no plain web address, is refused."""
        for url in (
            "",
            "/score_update",
            "//lms/score_update",
            "lms/score_update",
            "http:/lms/score_update",
            "http:lms/score_update",
            "http:///score_update",
            "http://lms",
            "http://lms?/score_update",
            "ftp://lms/score_update",
            "file:///score_update",
            "gopher://lms/score_update",
            "javascript://lms/score_update",
            "httpſ://lms/score_update",
            " http://lms/score_update",
            "http://lms/score_update ",
            "http://lms/score update",
            "http://lms/score_update\r\nHost: evil",
            "ht\ttp://lms/score_update",
            "http://lms\n/score_update",
            "http://lms/score_update\0",
            "http://lms/score_update#sesame",
            "http://lms#@evil/score_update",
            "http://lms@evil/score_update",
            "http://lms:sesame@evil/score_update",
            "http://@evil/score_update",
            "http://evil\\@lms/score_update",
            "http://lms\\.evil/score_update",
            "http://lms%2eexample/score_update",
            "http://lms%00.evil/score_update",
            "http://lms:/score_update",
            "http://lms:port/score_update",
            "http://lms:0/score_update",
            "http://lms:65536/score_update",
            "http://lms:99999999999/score_update",
            "http://lms:-1/score_update",
            "http://lms:+80/score_update",
            "http://lms:８0/score_update",
            "http://lms:80:80/score_update",
            "http://ｌms/score_update",
            "http://lms。example/score_update",
            "http://lms．example/score_update",
            "http://ⓛms/score_update",
            "http://\u212ams/score_update",
            "http://lms\u200b/score_update",
            "http://lms\u202e/score_update",
            "http://BÜCHER.example/score_update",
            "http://[::1/score_update",
            "http://::1/score_update",
            "http://[::1%25eth0]/score_update",
            "http://[1::2::3]/score_update",
            "http://lms/é/score_update",
            "http://" + "x" * 254 + "/score_update",
        ):
            self.refused(header(url))

    @given(st.text(max_size=40))
    def test_one_reading(self, text: str) -> None:
        """Twisted connects to that host and port which were compared, whatever was in the header."""
        for url in (f"http://lms{text}/x", f"http://{text}/x", f"http://lms/{text}", text):
            try:
                address = callback_address(header(url))
            except ValueError:
                continue
            uri = URI.fromBytes(address.url.encode("ascii"))
            host = f"[{uri.host.decode()}]" if b":" in uri.host else uri.host.decode()
            default = {b"http": 80, b"https": 443}[uri.scheme]
            port = "" if uri.port == default else f":{uri.port}"
            self.assertEqual(f"{uri.scheme.decode()}://{host}{port}", address.origin)


class OriginTests(SynchronousTestCase):
    """``origin``."""

    def test_refused(self) -> None:
        """What isn't just an origin is refused, with an example of one."""
        for value in ("", "lms", "lms:8000", "http://lms/x", "http://u@lms", "ftp://lms", "http://*.example.org"):
            self.assertTrue(str(self.assertRaises(ValueError, origin, value)))

    def test_slash(self) -> None:
        """A slash behind it is forgiven."""
        self.assertEqual(origin("http://lms/"), "http://lms")


class PlaceTests(SynchronousTestCase):
    """``place_of``."""

    def place(self, path: str) -> Place:
        """What a path tells."""
        return place_of(Address(origin="http://lms", path=path))

    def test_ordinary(self) -> None:
        """Course, learner and problem are the LMS's words."""
        self.assertEqual(
            self.place(PATH),
            Place(course="course-v1:O+C+R", student="7", block="block-v1:O+C+R+type@problem+block@abc"),
        )

    def test_quoted(self) -> None:
        """What is quoted in the URL is what the LMS means."""
        path = "/courses/course-v1%3A%C3%89cole%2BC%2BR/xqueue/7/block-v1%3AO%2BC/score_update"
        self.assertEqual(self.place(path), Place(course="course-v1:École+C+R", student="7", block="block-v1:O+C"))

    def test_old_course_ids(self) -> None:
        """Old courses have slashes in their names."""
        path = "/courses/MITx/6.002x/2012_Fall/xqueue/7/i4x:;_;_MITx;_6.002x;_problem;_p1/ungraded_response"
        expected = Place(course="MITx/6.002x/2012_Fall", student="7", block="i4x:;_;_MITx;_6.002x;_problem;_p1")
        self.assertEqual(self.place(path), expected)

    def test_elsewhere(self) -> None:
        """Another path tells nothing."""
        for path in ("/", "/score_update", "/courses//xqueue/7/b/score_update", "/courses/c/xqueue/7/score_update"):
            self.assertEqual(self.place(path), Place())

    def test_hostile(self) -> None:
        """Words that are too long or not printable are left out."""
        path = f"/courses/a%00b/xqueue/%0A/{'x' * 300}/score_update"
        self.assertEqual(self.place(path), Place())
