"""The command ``edxagent``: its options, its subcommands, and one line for every failure."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

import click

from edxagent.cli.api_key import api_key
from edxagent.cli.dead import dead
from edxagent.cli.demo import demo
from edxagent.cli.grade import grade
from edxagent.cli.password import password
from edxagent.cli.running import complain
from edxagent.cli.send import send
from edxagent.cli.trace import trace
from edxagent.config.parsers import did_you_mean


class _Commands(click.Group):
    """A group that knows what was meant, and says what is wrong in one line."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See :meth:`click.Group.resolve_command`."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            commands = self.list_commands(ctx)
            hint = did_you_mean(name, commands) or f"; there are {', '.join(commands)}"
            raise click.UsageError(f"there is no command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """See :meth:`click.Group.main`; always ends the program."""
        options["standalone_mode"] = False
        try:
            status = super().main(*args, **options)
        except click.ClickException as error:
            status = complain(error)
        except click.Abort:
            status = 130
        sys.exit(status or 0)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        try:
            click.echo(f"edxagent {version('edxagent')}")
        except PackageNotFoundError:
            click.echo("edxagent, from a checkout that isn't installed")
        ctx.exit()


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
@click.option("--debug", is_flag=True, help="Show where in the program a failure came from.")
@click.pass_context
def edxagent(ctx: click.Context, debug: bool) -> None:
    """External grading for Open edX over RabbitMQ.

    Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 the broker refused or can't be reached; 130 after
    Ctrl-C, 143 after SIGTERM. Each command's help says what that means for it.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


edxagent.add_command(api_key)
edxagent.add_command(dead)
edxagent.add_command(demo)
edxagent.add_command(grade)
edxagent.add_command(password)
edxagent.add_command(send)
edxagent.add_command(trace)


def main() -> NoReturn:
    """Run the command line; the console script's entry point."""
    edxagent.main(prog_name="edxagent")
