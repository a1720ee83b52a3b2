"""Takes verdicts from the results queue and sees to it that they reach the LMS."""
