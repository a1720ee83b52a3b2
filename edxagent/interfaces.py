"""The contracts between the rooms, whole: types, units, errors and what cancelling does."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from edxagent.model import CheckedResult, GraderRequest, GraderResponse, Message, Properties


class IGrader(Interface):
    """Something that turns a submission into a verdict.

    A provider that is also an ``IService`` is started before the first submission and stopped after the last.
    """

    def grade(
        request: GraderRequest,
    ) -> Coroutine[Deferred[Any], Any, GraderResponse] | Deferred[GraderResponse]:
        """Grade one submission. Many calls may be under way at once.

        Write it as ``async def``, or return a Deferred; the caller passes the result to ``ensureDeferred``.

        *Deadline.* The caller cancels when the configured time is over; a provider needs none of its own.

        *Cancellation.* Cancelling must end the work (kill the process, drop the connection) and let go of
        everything it held, whether or not the Deferred has fired by the time that ``cancel()`` returns. The caller may
        cancel again when that takes long, and waits no longer then.

        :raises MalformedSubmission: the submission names something that is missing, too much or not allowed; final.
        :raises GraderUnavailable: it couldn't be asked; asking again later may help.
        :raises GraderCrashed: it ended without an answer.
        :raises BadReply: its answer is too large or no JSON text.
        :raises Exception: anything else counts as ``GraderCrashed`` and is logged with its traceback.
        """


@frozen(kw_only=True)
class GraderTools:
    """What the composition root hands to a factory, so that no grader reaches for a global.

    :ivar reactor: provides ``IReactorTime``, ``IReactorProcess``, ``IReactorTCP``, ``IReactorThreads``.
    :ivar concurrency: the greatest number of submissions that will be graded at once.
    :ivar max_reply: bytes; a longer reply is a :class:`~edxagent.errors.BadReply`, and need not be read to its end.
    """

    reactor: Any
    concurrency: int
    max_reply: int


class IGraderFactory(Interface):
    """A kind of grader that ``[grader] kind`` can name. Found through ``twisted.plugin`` or a dotted name."""

    kind: str = Attribute("The word for ``kind =``, such as ``http``.")
    keys: Sequence[Any] = Attribute(
        "The keys of ``[grader]`` for this kind, beside ``kind`` and ``timeout``: :class:`edxagent.config.keys.Key`."
    )

    def build(options: Mapping[str, Any], tools: GraderTools) -> IGrader:
        """Make a grader. ``options`` has one parsed value for each of :attr:`keys`.

        :raises ValueError: the values don't fit each other; the message names the key and the remedy.
        """


class IDelivery(Interface):
    """A request that the broker handed to us and that is ours until we settle it, once."""

    queue: str = Attribute("The name of the queue that it came from.")
    body: bytes = Attribute("The message's body.")
    properties: Properties = Attribute("The message's properties.")
    redelivered: bool = Attribute("Whether the broker handed it out before.")

    def ack() -> bool:
        """Tell the broker that the request is done with.

        :returns: False if the connection that it came from is gone: the broker will hand it out again.
        :raises RuntimeError: it was settled before.
        """

    def requeue() -> bool:
        """Give the request back to its queue; returns and raises as :meth:`ack` does."""


class IHeldDelivery(IDelivery):
    """A delivery as an intake hands it to the agent: held for a slot first, graded later."""

    def begin() -> None:
        """A slot is ours and grading begins: the intake may take the next request from that queue."""


class IPublisher(Interface):
    """A way to hand the broker messages and know that it has them."""

    def publish(message: Message) -> Awaitable[None]:
        """Publish a persistent message as mandatory; done when the broker confirmed it.

        Cancelling stops the waiting, not a message that is on its way.

        :raises Unroutable: nothing is bound there.
        :raises PublishFailed: the broker refused it, or didn't confirm in time.
        :raises BrokerUnreachable: there is no connection, or it was lost before the confirm.
        :raises MessageRefused: AMQP can't carry it; final.
        """


class IResultSink(Interface):
    """Somewhere that verdicts go.

    Delivery is at least once: the same result may come again, also after it was taken, also from another process; a
    provider must be idempotent. A ``graded`` result replaces a failure that came before it, nothing replaces a
    ``graded`` one, and among equals the first wins.

    A provider that is also an ``IService`` is started before the first result and stopped after the last.
    """

    def target(result: CheckedResult) -> str | None:
        """The system that this result would go to, such as ``https://lms.example.org``; ``None`` if it isn't for this
        sink. When a target fails too often, it is left alone for a while. Never holds a credential.
        """

    def deliver(result: CheckedResult) -> Coroutine[Deferred[Any], Any, None] | Deferred[None]:
        """Hand the result over; many may be under way at once. A provider keeps its own deadline.

        Cancelling must end the attempt and let go of everything it held; the result comes again.

        :raises SinkUnavailable: not now; asking again later may help.
        :raises SinkRefused: never; the result is parked for a person to look at.
        :raises Exception: anything else counts as ``SinkRefused`` and is logged with its traceback.
        """


@frozen(kw_only=True)
class SinkTools:
    """What the composition root hands to a sink's factory.

    :ivar name: the NAME in ``[sink:NAME]``.
    :ivar reactor: provides ``IReactorTime``, ``IReactorTCP``, ``IReactorThreads``.
    :ivar concurrency: the greatest number of results that will be delivered at once.
    :ivar wall_clock: seconds since the epoch.
    """

    name: str
    reactor: Any
    concurrency: int
    wall_clock: Any


class IResultSinkFactory(Interface):
    """A kind of sink that ``[sink:NAME] kind`` can name. Found through ``twisted.plugin`` or a dotted name."""

    kind: str = Attribute("The word for ``kind =``, such as ``callback``.")
    keys: Sequence[Any] = Attribute(
        "The keys of ``[sink:NAME]`` for this kind, beside ``kind``: :class:`edxagent.config.keys.Key`."
    )

    def build(options: Mapping[str, Any], tools: SinkTools) -> IResultSink:
        """Make a sink. ``options`` has one parsed value for each of :attr:`keys`.

        :raises ValueError: the values don't fit each other; the message names the key and the remedy.
        """
