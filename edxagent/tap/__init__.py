"""The composition roots of ``twistd edxagent`` and ``twistd edxagent-lms``: the one room that reaches for reactor,
clock and signals.
"""
