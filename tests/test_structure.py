"""The house's floors: an upper room imports lower ones only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

PACKAGE = Path(__file__).resolve().parent.parent / "edxagent"
FLOORS = {
    "model": 0,
    "errors": 0,
    "interfaces": 0,
    "wire": 0,
    "words": 0,
    "verdict": 0,
    "disposition": 0,
    "tasks": 1,
    "config": 1,
    "plugins": 1,
    "reload": 1,
    "limits": 1,
    "breaker": 1,
    "amqp": 2,
    "web": 2,
    "graders": 2,
    "agent": 3,
    "lms": 3,
    "ops": 3,
    "tap": 4,
    "cli": 5,
    "privatenode": 5,
    "testing": 6,
}
LONGEST = 300


def room_of(path: Path) -> str:
    """The room that a module is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """The dotted names that a module imports, ``from`` names included; those for types only are left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


class FloorsTests(SynchronousTestCase):
    """Who may know whom."""

    def test_every_room_has_a_floor(self) -> None:
        """No room is missing from the plan, and none in it is gone."""
        self.assertEqual({room_of(path) for path in MODULES}, set(FLOORS))

    def test_imports_go_down(self) -> None:
        """A room imports its own modules, its own floor's when that makes no circle, and lower floors."""
        edges: dict[str, set[str]] = {room: set() for room in FLOORS}
        for path in MODULES:
            for name in imports_of(path):
                parts = name.split(".")
                if parts[0] == "edxagent" and len(parts) > 1 and parts[1] != room_of(path):
                    self.assertLessEqual(FLOORS[parts[1]], FLOORS[room_of(path)], f"{path} imports {name}")
                    edges[room_of(path)].add(parts[1])

        def visit(room: str, trail: tuple[str, ...]) -> None:
            self.assertNotIn(room, trail, f"a circle: {trail}")
            for other in edges[room]:
                visit(other, (*trail, room))

        for room in edges:
            visit(room, ())

    def test_only_amqp_knows_txamqp(self) -> None:
        """Everybody else sees our channels and deliveries."""
        for path in MODULES:
            if room_of(path) != "amqp":
                self.assertFalse([name for name in imports_of(path) if name.split(".")[0] == "txamqp"], path)

    def test_only_roots_reach_for_the_reactor(self) -> None:
        """The reactor is passed in; only the programs' roots, and tests, take the global one."""
        for path in MODULES:
            if room_of(path) not in ("tap", "cli", "testing"):
                self.assertNotIn("twisted.internet.reactor", list(imports_of(path)), path)

    def test_production_knows_no_tests(self) -> None:
        """What runs in production imports no double and no private node; only the demo has one."""
        for path in MODULES:
            if room_of(path) != "testing" and path.name != "demo.py":
                rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("edxagent.")}
                self.assertFalse(rooms & {"testing", "privatenode"} - {room_of(path)}, path)

    def test_modules_are_short(self) -> None:
        """A module that one can't oversee wants to be two."""
        for path in MODULES:
            self.assertLessEqual(len(path.read_text().splitlines()), LONGEST, path)
