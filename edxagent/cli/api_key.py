"""``edxagent api-key``: a new key for agents that ask a gateway for their configuration, and its hash."""

from __future__ import annotations

import hashlib
import secrets

import click


@click.command("api-key")
def api_key() -> None:
    """Print a new random key and its hash.

    The key goes into the file that api_key_file in [lms-config] of agent.ini names; the hash is key_hash in
    [agent-config:NAME] of lms.ini. The key is shown this once.

    Exit status: 0 printed.
    """
    key = secrets.token_urlsafe(32)
    print(f"key: {key}")
    print(f"key_hash: {hashlib.sha256(key.encode()).hexdigest()}")
