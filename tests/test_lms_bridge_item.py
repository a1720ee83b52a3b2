"""What edx-submissions hands out, read."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from edxagent.lms.bridge.item import LONGEST_HEADER, read_item
from tests.bridge_support import item_of

ROOT = "https://lms.example.org"


def content(header: object = None, files: str = "{}") -> str:
    """As the API writes it."""
    told = {"submission_id": 7, "submission_key": "k"} if header is None else header
    return json.dumps({"xqueue_header": json.dumps(told), "xqueue_body": "not ours to read", "xqueue_files": files})


class ReadItemTests(SynchronousTestCase):
    """``read_item``."""

    def test_verbatim(self) -> None:
        """Header and body stay as they are."""
        item = read_item(content(), ROOT)
        self.assertEqual(json.loads(item.header), {"submission_id": 7, "submission_key": "k"})
        self.assertEqual((item.body, item.remote, item.key), ("not ours to read", 7, "k"))

    def test_whole_urls_stay(self) -> None:
        """Files that have an address keep it, down to the last blank."""
        for files in ('{ "a.c":  "https://store.example.org/1" }', "{}", '{"a": "//other/1"}', "[]", "secret", ""):
            self.assertEqual(read_item(content(files=files), ROOT).files, files)

    def test_paths_become_urls(self) -> None:
        """A path on the LMS's server gets the LMS's address in front; what has one is left alone."""
        files = json.dumps({"ä.c": "/media/q1/1", "b.c": "https://store.example.org/1"})
        self.assertEqual(
            json.loads(read_item(content(files=files), ROOT).files),
            {"ä.c": f"{ROOT}/media/q1/1", "b.c": "https://store.example.org/1"},
        )

    def test_unreadable(self) -> None:
        """What can't be read is refused, without being quoted."""
        for text in (
            "",
            "{",
            "[]",
            "[" * 100_000,
            "{}",
            content([]),
            content({}),
            content({"submission_id": "secret", "submission_key": "secret"}),
            content({"submission_id": 7, "submission_key": None}),
            content({"submission_id": 7, "submission_key": "secret" * LONGEST_HEADER}),
            '{"xqueue_header": "\\ud800", "xqueue_body": ""}',
        ):
            error = self.assertRaises(ValueError, read_item, text, ROOT)
            self.assertNotIn("secret", str(error))

    def test_id(self) -> None:
        """Our id is the same for the same bridge, submission and key, and another one for another of them."""
        ids = [
            item.submission(bridge) for bridge in ("a", "b") for item in (item_of(1), item_of(2), item_of(1, "other"))
        ]
        self.assertEqual(len(set(ids)), 6)
        self.assertEqual(item_of(1).submission("a"), ids[0])
        self.assertTrue(all(len(text) == 64 for text in ids))

    def test_no_secret_is_shown(self) -> None:
        """What an item prints holds neither the key nor what the learner wrote."""
        self.assertEqual(repr(item_of(1, "secret")), "Item(remote=1)")
        self.assertNotIn("secret", item_of(1, "secret").submission("a"))
