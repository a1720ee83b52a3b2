"""For a Python that is started with this folder in its ``PYTHONPATH``: told by ``SIGUSR2``, it counts what it holds.

The file that ``TEST_CENSUS`` names gets the counts, as JSON, in the place of those before. The program itself knows
nothing of it.
"""

import gc
import json
import os
import signal
import sys
import threading
from collections import Counter
from types import CoroutineType


def _census():
    gc.collect()
    deferred = sys.modules["twisted.internet.defer"].Deferred
    kinds, pending = Counter(), 0
    for each in gc.get_objects():
        kind = type(each)
        kinds[kind] += 1
        # A Deferred that a coroutine waits for has been called, or not; what it waits for itself decides.
        pending += issubclass(kind, deferred) and not each.called
    return {
        "deferreds": sum(count for kind, count in kinds.items() if issubclass(kind, deferred)),
        "pending": pending,
        "coroutines": kinds[CoroutineType],
        "calls": len(sys.modules["twisted.internet.reactor"].getDelayedCalls()),
        "threads": threading.active_count(),
        "kinds": {f"{kind.__module__}.{kind.__qualname__}": count for kind, count in kinds.most_common(200)},
    }


def _tell(number, frame):
    path = os.environ["TEST_CENSUS"]
    with open(f"{path}.new", "w") as file:
        json.dump(_census(), file)
    os.replace(f"{path}.new", path)


signal.signal(signal.SIGUSR2, _tell)
