"""Sends a stored file to whoever fetches it: read in threads, and only as fast as it is taken."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from edxagent.lms.gateway.request import FormRequest
from edxagent.lms.gateway.threads import Threads
from edxagent.lms.gateway.uploads import StoredFile

PIECE = 64 * 1024


async def send_file(request: FormRequest, file: StoredFile, threads: Threads) -> bytes:
    """Answer with a file, and close it. Returns the last of it, which is still to be written."""
    try:
        request.answer(b"", content_type=b"application/octet-stream")
        request.setHeader(b"Content-Length", b"%d" % file.size)
        request.setHeader(b"Content-Disposition", f'attachment; filename="{file.name}"'.encode())
        if request.method != b"HEAD" and not request.gone:
            await _send(request, file, threads)
        return b""
    finally:
        file.content.close()


async def _send(request: FormRequest, file: StoredFile, threads: Threads) -> None:
    pace = _Pace()
    request.notifyFinish().addErrback(lambda _: pace.resumeProducing())
    request.registerProducer(pace, True)
    left = file.size
    while left and not request.gone:
        piece = await threads.run(file.content.read, min(PIECE, left))
        left -= len(piece)
        if not piece and not request.gone:  # it has become shorter: the client mustn't take it for the whole
            request.channel.cut()
            return
        request.write(piece)
        await pace.taken()
    if not request.gone:
        request.unregisterProducer()


@implementer(IPushProducer)
class _Pace:
    """Whether the connection takes more."""

    def __init__(self) -> None:
        self._open = True
        self._waiter: Deferred[None] | None = None

    def taken(self) -> Deferred[None]:
        """Fires when it does."""
        waiter: Deferred[None] = Deferred()
        if self._open:
            waiter.callback(None)
        else:
            self._waiter = waiter
        return waiter

    def pauseProducing(self) -> None:
        self._open = False

    def resumeProducing(self) -> None:
        self._open = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def stopProducing(self) -> None:
        self.resumeProducing()
