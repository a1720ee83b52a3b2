"""``edxagent password``: the hash of a password, for the users of a gateway."""

from __future__ import annotations

import sys

import click

from edxagent.lms.gateway.passwords import LONGEST_PASSWORD, PasswordHash


@click.command()
def password() -> None:
    """Ask for a password twice, and print its hash for [users] in lms.ini.

    When standard input isn't a terminal, its first line is the password.

    Exit status: 0 printed; 2 no password was given, one that is too long, or two different
    ones.
    """
    chosen = _asked() if sys.stdin.isatty() else _read()
    if len(chosen) > LONGEST_PASSWORD:
        raise click.UsageError(f"a password has at most {LONGEST_PASSWORD} characters")
    print(PasswordHash.of(chosen))


def _asked() -> str:
    # On standard error, so that $(edxagent password) gets the hash alone.
    first: str = click.prompt("Password", hide_input=True, err=True)
    if click.prompt("The same again", hide_input=True, err=True) != first:
        raise click.UsageError("these were two different passwords")
    return first


def _read() -> str:
    try:
        text = sys.stdin.readline().rstrip("\r\n")
    except UnicodeDecodeError:
        raise click.UsageError("standard input isn't text in this system's encoding") from None
    if not text:
        raise click.UsageError("standard input begins with an empty line; its first line must be the password")
    return text
