"""How the word behind ``kind =`` becomes a grader's factory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

import twisted.plugins
from edxagent.config.keys import REQUIRED, Key
from edxagent.graders.registry import BUILT_IN, find_factory
from edxagent.interfaces import IGraderFactory
from edxagent.testing.graders import build

PLUGIN = """
    from twisted.plugin import IPlugin
    from zope.interface import implementer
    from edxagent.interfaces import IGraderFactory

    @implementer(IPlugin, IGraderFactory)
    class Oracle:
        "Knows."
        kind = "oracle"
        keys = ()
        def build(self, options, tools):
            return None

    oracle = Oracle()
"""


@implementer(IGraderFactory)
class Forgetful:
    """A factory that lacks what its interface wants."""

    kind = "forgetful"


forgetful = Forgetful()


class FindFactoryTests(SynchronousTestCase):
    """``find_factory``."""

    def plugin(self, name: str, source: str) -> None:
        """Put a module among Twisted's plugins, for this test."""
        folder = os.path.abspath(self.mktemp())
        os.mkdir(folder)
        with open(os.path.join(folder, f"{name}.py"), "w") as file:
            file.write(textwrap.dedent(source))
        twisted.plugins.__path__.append(folder)
        self.addCleanup(twisted.plugins.__path__.remove, folder)
        self.addCleanup(sys.modules.pop, f"twisted.plugins.{name}", None)

    def complaint(self, kind: str) -> str:
        """What is said of a kind that can't be used: one line."""
        text = str(self.assertRaises(ValueError, find_factory, kind))
        self.assertEqual(len(text.splitlines()), 1)
        return text

    def test_built_in(self) -> None:
        """Every built-in kind has a factory of that kind, which keeps its interface."""
        for kind in BUILT_IN:
            factory = find_factory(kind)
            self.assertTrue(verifyObject(IGraderFactory, factory))
            self.assertEqual(factory.kind, kind)

    def test_keys(self) -> None:
        """Every key of a built-in kind has a name of its own and a line of help; none is the reader's own."""
        for kind in BUILT_IN:
            keys = find_factory(kind).keys
            names = [key.name for key in keys]
            self.assertEqual(len(set(names)), len(names))
            self.assertFalse({"kind", "timeout"} & set(names))
            for key in keys:
                self.assertIsInstance(key, Key)
                self.assertTrue(key.help)

    def test_required(self) -> None:
        """Only the two keys that nobody can guess must be given."""
        required = [(kind, key.name) for kind in BUILT_IN for key in find_factory(kind).keys if key.default is REQUIRED]
        self.assertEqual(required, [("http", "url"), ("command", "command")])

    def test_only_what_is_asked_for(self) -> None:
        """Looking a kind up imports no other kind's libraries."""
        program = (
            "import sys; from edxagent.graders.registry import find_factory; find_factory('fixed');"
            "sys.exit(any(name in sys.modules for name in ('treq', 'edxagent.graders.command')))"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.assertEqual(subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode, 0)

    def test_plugin(self) -> None:
        """A Twisted plugin is found by its kind."""
        self.plugin("oracle_plugin", PLUGIN)
        self.assertEqual(find_factory("oracle").kind, "oracle")

    def test_same_kind_twice(self) -> None:
        """Two plugins of a kind are refused, not chosen from."""
        self.plugin("oracle_plugin", PLUGIN)
        self.plugin("other_oracle_plugin", PLUGIN)
        self.assertIn("2 plugins are of kind oracle", self.complaint("oracle"))

    def test_dotted_name(self) -> None:
        """A factory may be named in full, with a colon or without."""
        for name in ("edxagent.graders.rehearsal:sleep", "edxagent.graders.rehearsal.sleep"):
            self.assertEqual(find_factory(name).kind, "sleep")

    def test_unknown(self) -> None:
        """An unknown kind is answered with the nearest one and all that there are."""
        self.plugin("oracle_plugin", PLUGIN)
        text = self.complaint("htpp")
        self.assertIn('did you mean "http"?', text)
        self.assertIn("known are command, failing, fixed, http, oracle, sleep", text)

    def test_broken_plugin(self) -> None:
        """A plugin whose import fails is named where its kind is missed."""
        self.plugin("broken_plugin", "import no_such_module")
        text = self.complaint("broken")
        self.flushLoggedErrors(ModuleNotFoundError)
        self.assertIn("twisted.plugins.broken_plugin could not be imported: ModuleNotFoundError", text)

    def test_broken_dotted_name(self) -> None:
        """A dotted name that leads nowhere says which step failed."""
        self.assertIn(
            "ModuleNotFoundError: No module named 'no_such_package'", self.complaint("no_such_package.grader")
        )
        self.assertIn("has no attribute 'nothing'", self.complaint("edxagent.graders.rehearsal:nothing"))

    def test_half_a_name(self) -> None:
        """Something with dots that is no dotted name is no traceback either."""
        for name in (".", ":", "a:", ":b", "a..b", "..", "x." * 500):
            self.assertTrue(self.complaint(name))

    def test_no_factory(self) -> None:
        """An object that isn't a factory, or lacks something, is refused with what it lacks."""
        self.assertIn("is no grader factory", self.complaint("edxagent.graders.rehearsal:verdict"))
        self.assertIn("keys", self.complaint(f"{__name__}:forgetful"))


class OptionsTests(SynchronousTestCase):
    """Options that don't fit each other."""

    def refused(self, kind: str, **options: Any) -> str:
        """What a factory says of options."""
        return str(self.assertRaises(ValueError, build, find_factory(kind), MemoryReactorClock(), **options))

    def test_sleep(self) -> None:
        """A longest time below the shortest is refused."""
        self.assertIn("max is below min", self.refused("sleep", min=2.0, max=1.0))

    def test_password_alone(self) -> None:
        """A password without a name is refused, and not repeated."""
        text = self.refused("http", url="http://127.0.0.1/", password="sesame")
        self.assertIn("username is missing", text)
        self.assertNotIn("sesame", text)

    def test_ca_file(self) -> None:
        """A file of authorities that is missing, or holds none, is refused by name."""
        self.assertIn("/no/such/file", self.refused("http", url="https://127.0.0.1/", ca_file="/no/such/file"))
        self.assertIn("no certificate", self.refused("http", url="https://127.0.0.1/", ca_file=__file__))
