"""For a Python that is started with this folder in its ``PYTHONPATH``: a wall clock that a test can set.

``time.time`` is the only way in which Twisted, txamqp and the agent read the wall clock. The file that ``TEST_CLOCK``
names holds the seconds that it is wrong by, as a double.
"""

import mmap
import os
import struct
import time

_real = time.time

with open(os.environ["TEST_CLOCK"], "r+b") as _file:
    _offset = mmap.mmap(_file.fileno(), 8)


def _shifted():
    return _real() + struct.unpack_from("d", _offset)[0]


time.time = _shifted
