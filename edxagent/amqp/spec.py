"""The protocol definition: which methods AMQP has, with which fields.

txamqp generates its channel methods from an XML file but ships none, so ``amqp0-9-1.xml`` beside this module is ours.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from txamqp import spec as txamqp_spec

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
"""What a client sends first (AMQP 0-9-1 §4.2.2)."""


@cache
def load_spec() -> Any:
    """The definition as txamqp's ``Spec``; parsed once a process."""
    text = files("edxagent.amqp").joinpath("amqp0-9-1.xml").read_bytes()
    return txamqp_spec.load_string(text, "amqp0-9-1.xml")


@cache
def methods_by_id() -> dict[bytes, Any]:
    """The first four bytes of a method frame's payload (class, method) → txamqp's ``Method``."""
    return {
        klass.id.to_bytes(2, "big") + method.id.to_bytes(2, "big"): method
        for klass in load_spec().classes
        for method in klass.methods
    }
