"""The command line, ``edxagent``: a module a command, and the rooms that several of them share."""
