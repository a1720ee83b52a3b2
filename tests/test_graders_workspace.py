"""Working folders, and how they go away."""

from __future__ import annotations

import os
import stat

from twisted.trial.unittest import SynchronousTestCase

from edxagent.graders.workspace import Workspace, remove_tree


class WorkspaceTests(SynchronousTestCase):
    """``Workspace``."""

    def setUp(self) -> None:
        """Have a place for the folders, which doesn't exist yet."""
        self.base = os.path.abspath(self.mktemp())

    def workspace(self) -> Workspace:
        """A workspace of one more agent."""
        workspace = Workspace(self.base)
        self.addCleanup(workspace.close)
        return workspace

    def test_private(self) -> None:
        """Each folder is new, empty, and closed to other users, as is all above it."""
        workspace = self.workspace()
        folders = [workspace.make() for _ in range(3)]
        self.assertEqual(len(set(folders)), 3)
        for folder in (*folders, os.path.dirname(folders[0]), self.base):
            self.assertEqual(stat.S_IMODE(os.stat(folder).st_mode), 0o700)

    def test_leftovers(self) -> None:
        """What an agent left behind is found by the next one, but only when the first is gone."""
        first, second = self.workspace(), self.workspace()
        folder = os.path.dirname(first.make())
        second.open()
        self.assertEqual(list(second.leftovers()), [])
        first.close()
        self.assertEqual(list(second.leftovers()), [folder])

    def test_leftovers_are_not_shared(self) -> None:
        """While one agent works on a leftover, another one doesn't get it too."""
        first, second, third = self.workspace(), self.workspace(), self.workspace()
        first.make()
        first.close()
        second.open()
        third.open()
        found = second.leftovers()
        next(found)
        self.assertEqual(list(third.leftovers()), [])

    def test_close(self) -> None:
        """An agent that left nothing behind leaves no folder either."""
        workspace = self.workspace()
        os.rmdir(workspace.make())
        workspace.close()
        self.assertEqual(os.listdir(self.base), [])

    def test_public_base(self) -> None:
        """A base that others may write to is refused."""
        os.mkdir(self.base)
        os.chmod(self.base, 0o777)
        error = self.assertRaises(PermissionError, self.workspace().make)
        self.assertIn(self.base, str(error))

    def test_linked_base(self) -> None:
        """A base that is a symbolic link is refused: somebody else may have put it there."""
        target = self.mktemp()
        os.mkdir(target)
        os.symlink(os.path.abspath(target), self.base)
        self.assertRaises(PermissionError, self.workspace().make)


class RemoveTreeTests(SynchronousTestCase):
    """``remove_tree``."""

    def setUp(self) -> None:
        """Have a folder, and something outside that must survive."""
        self.home = os.path.abspath(self.mktemp())
        os.mkdir(self.home)
        self.top = os.path.join(self.home, "top")
        os.mkdir(self.top)
        self.outside = os.path.join(self.home, "outside")
        os.mkdir(self.outside)
        with open(os.path.join(self.outside, "precious"), "w"):
            pass

    def remove(self) -> None:
        """Remove, and see that only the outside is left, whole."""
        remove_tree(self.top)
        self.assertEqual(os.listdir(self.home), ["outside"])
        self.assertEqual(os.listdir(self.outside), ["precious"])

    def test_ordinary(self) -> None:
        """Files, folders, pipes and links within go."""
        os.makedirs(os.path.join(self.top, "a/b/c"))
        os.makedirs(os.path.join(self.top, "d/b/c"))
        os.mkfifo(os.path.join(self.top, "a/pipe"))
        with open(os.path.join(self.top, "a/b/file"), "w"):
            pass
        self.remove()

    def test_links(self) -> None:
        """Links to the outside go, what they point to doesn't."""
        os.symlink(self.outside, os.path.join(self.top, "folder"))
        os.symlink(os.path.join(self.outside, "precious"), os.path.join(self.top, "file"))
        os.symlink("nowhere", os.path.join(self.top, "dangling"))
        self.remove()

    def test_deep(self) -> None:
        """Folders nested deeper than Python's stack and than the longest path go."""
        here = os.open(self.top, os.O_RDONLY)
        for _ in range(3000):
            os.mkdir("d" * 50, dir_fd=here)
            below = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        self.remove()

    def test_locked(self) -> None:
        """Folders that nobody may read or write go."""
        os.makedirs(os.path.join(self.top, "a/b/c"))
        for folder in ("a/b", "a"):
            os.chmod(os.path.join(self.top, folder), 0)
        self.remove()

    def test_patience(self) -> None:
        """A removal that takes too long is given up."""
        for number in range(10):
            os.mkdir(os.path.join(self.top, str(number)))
        self.assertRaises(TimeoutError, remove_tree, self.top, patience=-1)
