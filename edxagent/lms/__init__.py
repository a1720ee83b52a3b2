"""The LMS side: takes submissions from an LMS, and carries verdicts back to it."""
