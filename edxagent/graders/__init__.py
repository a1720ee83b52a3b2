"""The kinds of grader that ``[grader] kind`` can name. Start at :mod:`edxagent.graders.registry`."""
