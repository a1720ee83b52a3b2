"""Writes ``docs/configuration.md``: ``python -m docs.write_configuration``, from the folder above."""

from __future__ import annotations

from pathlib import Path

from edxagent.config.manual import manual
from edxagent.graders import registry as graders
from edxagent.lms.sinks import registry as sinks

PAGE = Path(__file__).with_name("configuration.md")


def rendered() -> str:
    """What the page should hold."""
    return manual(
        {kind: graders.find_factory(kind).keys for kind in graders.BUILT_IN},
        {kind: sinks.find_sink_factory(kind).keys for kind in sinks.BUILT_IN},
    )


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
