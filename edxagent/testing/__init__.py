"""Helpers for tests of edxagent and of graders written for it; production imports nothing from here."""
