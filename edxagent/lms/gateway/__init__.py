"""The front door: what XQueue says to an LMS and to graders that poll it, over HTTP."""
