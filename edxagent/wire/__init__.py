"""Bytes on the broker ⇄ values: the one room where the message formats are decided.

A request carries XQueue's three strings verbatim (``xqueue_header``, ``xqueue_body``, ``xqueue_files``; upstream:
``xqueue/queue/lms_interface.py`` and ``capa/xqueue_interface.py``), so that nothing changes for course teams.
``xqueue_body`` is JSON text again, with the three strings that ``CodeResponse.get_score`` writes.
"""
