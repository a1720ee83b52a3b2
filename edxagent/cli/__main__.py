"""``python -m edxagent.cli``: the command line without an installation."""

from edxagent.cli.main import main

main()
