"""The package, installed into fresh environments in both of pip's ways."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
INGREDIENTS = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "edxagent", "twisted")
TWISTD_HELP = "import sys; from twisted.scripts.twistd import run; sys.argv = ['twistd', '--help']; run()"
ENTRY = "Grade Open edX submissions from RabbitMQ queues."
DATA = """
from importlib.resources import files
for folder in "edxagent", "edxagent.amqp":
    print(*sorted(each.name for each in files(folder).iterdir()))
"""


class Environment:
    """A virtual environment without edxagent that borrows everything else from the one that we run in.

    :ivar folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.folder], check=True)
        self.python = self.folder / "bin" / "python"
        site_packages = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (site_packages / "borrowed.pth").write_text("\n".join([*borrowed, ""]))

    def run(self, *arguments: str, cwd: Path | str = "/") -> str:
        """Run this environment's Python, blind to the current folder and the outer environment; return its output."""
        done = subprocess.run([self.python, "-I", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{arguments} exited with status {done.returncode}: {done.stdout}\n{done.stderr}")
        return done.stdout

    def pip(self, *arguments: str) -> None:
        """Run pip in this environment, without asking any network."""
        self.run("-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)

    def install(self, *arguments: str) -> None:
        """Install edxagent alone; its build tool and its dependencies are borrowed."""
        self.pip("install", "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", *arguments)

    def files(self) -> set[Path]:
        """All that is in it, but for what Python and Twisted cache."""
        return {
            path
            for path in self.folder.rglob("*")
            if path.is_file() and path.suffix != ".pyc" and path.name != "dropin.cache"
        }


class InstallTests(SynchronousTestCase):
    """What pip installs is found, and goes again."""

    def setUp(self) -> None:
        """Copy the project, so that building it leaves the checkout alone; make an environment."""
        self.project = Path(self.mktemp()).absolute()
        self.project.mkdir()
        for name in INGREDIENTS:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "dropin.cache")
                shutil.copytree(source, self.project / name, ignore=ignored)
            else:
                shutil.copy(source, self.project)
        self.environment = Environment(Path(self.mktemp()))

    def check(self, *how: str) -> None:
        """Install, look from several folders, uninstall, look again."""
        before = self.environment.files()
        self.assertNotIn(ENTRY, self.environment.run("-c", TWISTD_HELP))
        self.environment.install(*how, str(self.project))
        for cwd in ("/", self.project, self.environment.folder):
            self.assertIn(ENTRY, self.environment.run("-c", TWISTD_HELP, cwd=cwd))
        self.assertRegex(self.environment.run("-c", DATA), r"(?s)py\.typed.*\.xml")
        script = self.environment.folder / "bin" / "edxagent"
        self.assertIn("demo", subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout)
        self.environment.pip("uninstall", "--yes", "edxagent")
        self.assertEqual(self.environment.files(), before)
        self.assertNotIn(ENTRY, self.environment.run("-c", TWISTD_HELP))

    def test_ordinary(self) -> None:
        """``pip install .`` brings the twistd command, the script and the data files; uninstalling removes them."""
        self.check()

    def test_editable(self) -> None:
        """The editable install that the Makefile makes does the same."""
        self.check("--config-settings", "editable_mode=compat", "--editable")


class CheckTests(SynchronousTestCase):
    """``make test`` counts honestly."""

    processes = 1

    def count(self, tests: str) -> str:
        """Let ``.ci/check.py`` run a module of tests; return its summing-up."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / "test_sample.py").write_text(f"from twisted.trial.unittest import TestCase\n{tests}")
        program = f"import check; print(check.run_tests(['test_sample'], {self.processes}))"
        paths = f"import sys; sys.path[:0] = {[str(ROOT / '.ci'), str(folder)]}"
        command = [sys.executable, "-c", f"{paths}; {program}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]

    def test_counts_all_that_did_not_pass(self) -> None:
        """Failures, errors, skips, expected failures and unexpected successes all count as failed."""
        tests = """
class Tests(TestCase):
    def test_pass(self): pass
    def test_fail(self): self.fail()
    def test_error(self): 1 / 0
    def test_skip(self): pass
    test_skip.skip = "no"
    def test_todo(self): self.fail()
    test_todo.todo = "later"
    def test_todo_passes(self): pass
    test_todo_passes.todo = "later"
"""
        self.assertEqual(self.count(tests), "(1, 5)")

    def test_counts_a_module_that_cannot_be_imported(self) -> None:
        """A broken test module is a failure, not an absence."""
        self.assertEqual(self.count("import no_such_module"), "(0, 1)")

    def test_finds_nothing_in_an_empty_module(self) -> None:
        """Where there is no test, none passes."""
        self.assertEqual(self.count(""), "(0, 0)")


class SeveralProcessesTests(CheckTests):
    """It does so, too, where tests run in several processes."""

    processes = 2
