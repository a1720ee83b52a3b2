"""How the word behind ``kind =`` becomes a sink's factory. What is common with graders is tried with those."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from edxagent.config.keys import Key
from edxagent.interfaces import IResultSinkFactory
from edxagent.lms.sinks.registry import BUILT_IN, find_sink_factory


class FindSinkFactoryTests(SynchronousTestCase):
    """``find_sink_factory``."""

    def test_built_in(self) -> None:
        """Every built-in kind has a factory of that kind, which keeps its interface."""
        for kind in BUILT_IN:
            factory = find_sink_factory(kind)
            self.assertTrue(verifyObject(IResultSinkFactory, factory))
            self.assertEqual(factory.kind, kind)

    def test_keys(self) -> None:
        """Every key has a name of its own and a line of help; none is the reader's own."""
        for kind in BUILT_IN:
            keys = find_sink_factory(kind).keys
            names = [key.name for key in keys]
            self.assertEqual(len(set(names)), len(names))
            self.assertNotIn("kind", names)
            for key in keys:
                self.assertIsInstance(key, Key)
                self.assertTrue(key.help)

    def test_dotted_name(self) -> None:
        """A factory may be named in full."""
        self.assertEqual(find_sink_factory("edxagent.lms.sinks.callback:factory").kind, "callback")

    def test_unknown(self) -> None:
        """An unknown kind is answered with the nearest one, and with what there is."""
        error = str(self.assertRaises(ValueError, find_sink_factory, "calback"))
        self.assertIn('did you mean "callback"?', error)
        self.assertIn("known are callback, database", error)

    def test_no_sink(self) -> None:
        """A grader's factory is no sink's."""
        error = str(self.assertRaises(ValueError, find_sink_factory, "edxagent.plugins:Kinds"))
        self.assertIn("is no sink factory", error)
