"""The graders at work: the one that takes submissions, and those before it that finish what they have begun."""

from __future__ import annotations

from twisted.internet.defer import gatherResults

from edxagent.agent.grading import Grading
from edxagent.tasks import Tasks


class Succession:
    """One grading after the other; each is stopped when its last submission has ended.

    :ivar current: the one that takes submissions.
    """

    def __init__(self, first: Grading) -> None:
        self.current = first
        self._gradings = [first]
        self._leaving = Tasks()

    @property
    def count(self) -> int:
        """How many submissions haven't ended yet, whoever grades them."""
        return sum(grading.count for grading in self._gradings)

    def join(self, grading: Grading) -> None:
        """Have one more, which may come to be the current one: :meth:`succeed` or :meth:`leave` follows."""
        self._gradings.append(grading)

    def succeed(self, grading: Grading) -> None:
        """Make one that has joined the current one, and the one before leave."""
        before, self.current = self.current, grading
        self.leave(before)

    def leave(self, grading: Grading) -> None:
        """Stop one that takes no more submissions, when its last one has ended."""
        self._leaving.launch(self._leave(grading), "stopping a grader that has been replaced")

    def cancel(self) -> None:
        """Give back everything that hasn't ended yet."""
        for grading in self._gradings:
            grading.cancel()

    async def when_idle(self) -> None:
        """Returns when every submission has ended; cancelling stops the waiting only."""
        for grading in list(self._gradings):
            await grading.when_idle()

    async def stop(self) -> None:
        """Stop them all; returns when they have."""
        self._leaving.cancel()  # which is only waiting
        await gatherResults([grading.stop() for grading in self._gradings])
        self._gradings = [self.current]

    async def _leave(self, grading: Grading) -> None:
        await grading.when_idle()
        await grading.stop()
        self._gradings.remove(grading)
