"""What ``xqueue_files`` names, and which of it may be fetched."""

from __future__ import annotations

import json
import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from edxagent.errors import MalformedSubmission
from edxagent.graders.attachments import LONGEST_NAME, Attachment, host_list, read_attachments, safe_name

HOSTS = ("lms.example.org", "127.0.0.1:8080", "[::1]:8080")


class HostListTests(SynchronousTestCase):
    """``host_list``."""

    def test_good(self) -> None:
        """Hosts with or without a port, each once, in lower case; an IPv6 address has brackets."""
        for text, hosts in (
            ("lms.example.org", ("lms.example.org",)),
            ("LMS.Example.org:443, lms.example.org:443 10.0.0.1", ("lms.example.org:443", "10.0.0.1")),
            ("[::1]\n[::1]:65535", ("[::1]", "[::1]:65535")),
        ):
            self.assertEqual(host_list(text), hosts)

    def test_bad(self) -> None:
        """Nothing else will do."""
        for text in (
            *("", "\0", "http://a", "a/", "a:", "a:0", "a:65536", "a:x", "u@a", "*", "*.a", "::1", "[a", "a:1:2"),
            *("é.org", "\u212a", "a" * 254),
        ):
            self.assertRaises(ValueError, host_list, text)


class ReadAttachmentsTests(SynchronousTestCase):
    """``read_attachments``."""

    def read(self, files: str, most: int = 20) -> list[Attachment]:
        """Read it."""
        return read_attachments(files, HOSTS, most)

    def refusal(self, files: str, most: int = 20) -> str:
        """Why it isn't read: in one line."""
        text = str(self.assertRaises(MalformedSubmission, self.read, files, most))
        self.assertEqual(len(text.splitlines()), 1)
        return text

    def url(self, url: str) -> str:
        """What is fetched for a URL."""
        (attachment,) = self.read(json.dumps({"a": url}))
        return attachment.url

    def test_none(self) -> None:
        """An empty object names no file."""
        self.assertEqual(self.read("{}"), [])

    def test_some(self) -> None:
        """Each file has its name, its address, its host and the name it is kept under, in the order of the object."""
        files = {"b/ü.c": "https://lms.example.org/x?sig=1", "a.c": "http://127.0.0.1:8080/"}
        self.assertEqual(
            self.read(json.dumps(files)),
            [
                Attachment(
                    name="b/ü.c",
                    url="https://lms.example.org:443/x?sig=1",
                    host="lms.example.org:443",
                    kept_as="_.c",
                ),
                Attachment(name="a.c", url="http://127.0.0.1:8080/", host="127.0.0.1:8080", kept_as="a.c"),
            ],
        )

    def test_no_object_of_texts(self) -> None:
        """Whatever isn't a JSON object of texts is refused."""
        for files in (
            *("", "null", "[]", '"a"', "1", "{", '{"a": 1}', '{"a": null}', '{"a": {}}', '{"a": ["b"]}', "{} x"),
            *('{"a": NaN}', '{"\\ud800": "b"}', '{"\ud800": "b"}', '{"a":' * 10_000, "[" * 10_000),
        ):
            self.assertIn("isn't a JSON object of texts", self.refusal(files))

    def test_too_many(self) -> None:
        """As many as allowed will do, one more won't."""
        files = {f"{number}": "http://127.0.0.1:8080/" for number in range(3)}
        self.assertEqual(len(self.read(json.dumps(files), most=3)), 3)
        self.assertEqual(
            self.refusal(json.dumps(files), most=2), "xqueue_files names 3 files; [grader] max_files allows 2"
        )

    def test_addresses(self) -> None:
        """An address is sent as it was given, without its fragment; what isn't ASCII is encoded."""
        for url, expected in (
            ("http://lms.example.org", "http://lms.example.org:80/"),
            ("HTTP://LMS.example.org:80/A", "http://lms.example.org:80/A"),
            ("https://lms.example.org?a=b", "https://lms.example.org:443/?a=b"),
            (
                "https://lms.example.org/a%2Fb?x=a%2Bb%3D&y=a+b#frag ment",
                "https://lms.example.org:443/a%2Fb?x=a%2Bb%3D&y=a+b",
            ),
            ("http://[::1]:8080/a//../b;c", "http://[::1]:8080/a//../b;c"),
            ("http://127.0.0.1:8080/né|e", "http://127.0.0.1:8080/n%C3%A9%7Ce"),
        ):
            self.assertEqual(self.url(url), expected)

    def test_no_addresses(self) -> None:
        """What is no address, or one with a name and password, is refused, and not repeated."""
        for url in (
            *("", "a.c", "/media/secret", "//lms.example.org/secret", "ftp://lms.example.org/secret", "file:///secret"),
            *(
                "http:///secret",
                "http://user:secret@lms.example.org/",
                "http://lms.example.org\\@secret/",
                "http://[secret/",
            ),
            *(
                "http://lms.example.org:/secret",
                "http://lms.example.org:99999999/secret",
                "http://lms.example.org/ secret",
            ),
            *(
                "http://lms.example.org/\r\nsecret",
                "http://lms.exa\u212ample.org/secret",
                "http://lms.example.org/" + "x" * 9999,
            ),
        ):
            refusal = self.refusal(json.dumps({"a": url}))
            self.assertIn("file 1 of 1: expected an address", refusal)
            self.assertNotIn("secret", refusal)

    def test_other_hosts(self) -> None:
        """A host that isn't on the list, or another port of one that is, is refused by name, without the rest."""
        for host in (
            *(
                "example.org:80",
                "evil.lms.example.org:80",
                "lms.example.org.:80",
                "lms.example.org:8080",
                "127.0.0.1:80",
            ),
            *("127.0.0.1:8081", "127.1:8080", "2130706433:8080", "[::1]:80", "[::]:8080", "[::ffff:127.0.0.1]:8080"),
        ):
            refusal = self.refusal(json.dumps({"a": f"http://{host}/secret?secret#secret"}))
            self.assertEqual(refusal, f"file 1 of 1: its host {host} isn't one of [grader] file_hosts")
        self.assertIn("file_hosts", self.refusal('{"a": "https://lms.example.org:80/"}'))

    @given(st.text() | st.dictionaries(st.text(), st.text() | st.from_regex(r"https?://[^/]*/.*")).map(json.dumps))
    def test_anything(self, files: str) -> None:
        """Any text is read or refused; what is read goes to a host on the list."""
        try:
            attachments = self.read(files)
        except MalformedSubmission:
            return
        for attachment in attachments:
            self.assertRegex(attachment.url, r"\Ahttps?://(lms\.example\.org|127\.0\.0\.1|\[::1\]):[0-9]+/[!-~]*\Z")


class SafeNameTests(SynchronousTestCase):
    """``safe_name``."""

    def test_names(self) -> None:
        """Only the last part counts, and only what is safe of it."""
        for name, expected in (
            ("main.c", "main.c"),
            ("../../etc/passwd", "passwd"),
            ("C:\\temp\\a b.txt", "a_b.txt"),
            ("/", "file"),
            ("", "file"),
            ("..", "file"),
            ("...", "file"),
            (".bashrc", "bashrc"),
            ("-rf", "rf"),
            (".-.x", "x"),
            ("a\0b\nc", "a_b_c"),
            ("naïve.py", "na_ve.py"),
            ("作业.py", "__.py"),
            ("$(rm -rf *);'.c", "__rm_-rf_____.c"),
            ("x" * 500 + ".tar.gz", "x" * 97 + ".gz"),
            ("a." + "x" * 500, "a." + "x" * 98),
        ):
            self.assertEqual(safe_name(name, set()), expected)

    def test_taken(self) -> None:
        """A name that is taken gets a number before its ending, and still isn't too long."""
        taken = {"a.c", "a-2.c", "file", "x" * 98 + ".c"}
        for name, expected in (("b/a.c", "a-3.c"), ("", "file-2"), ("x" * 100 + ".c", "x" * 96 + "-2.c")):
            self.assertEqual(safe_name(name, taken), expected)

    @given(st.lists(st.text(alphabet="aé./\\-_\0", max_size=150) | st.text(max_size=150)))
    def test_any_names(self, names: list[str]) -> None:
        """Whatever the names, each file has a safe one of its own."""
        taken: list[str] = []
        for name in names:
            safe = safe_name(name, taken)
            self.assertTrue(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", safe), safe)
            self.assertLessEqual(len(safe), LONGEST_NAME)
            taken.append(safe)
        self.assertEqual(len(set(taken)), len(taken))
