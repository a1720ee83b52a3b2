"""Takes submissions from an LMS that offers them by edx-submissions, and hands verdicts back to it."""
