"""How the parts of the LMS side come to go by another configuration: all of them, or, with an error, none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attrs import evolve, frozen
from twisted.application.service import IService
from twisted.internet.defer import Deferred, maybeDeferred, succeed

from edxagent.amqp.link import BrokerLink
from edxagent.config.lms_values import LMSConfig
from edxagent.errors import BrokerUnreachable, ConfigError, plain_reason
from edxagent.interfaces import IResultSink
from edxagent.lms.parts import Parts, PartsMaker, agent_answers, blamed, ensure_submission_queues, results_key


@frozen(kw_only=True)
class Altered:
    """What there is after a change.

    :ivar left: sinks that have no place in it.
    :ivar over: fires when nobody needs them any more.
    """

    parts: Parts
    left: list[IService]
    over: Deferred[None]


async def prepared(maker: PartsMaker, parts: Parts, config: LMSConfig, running: bool) -> Callable[[], Altered]:
    """See that the parts can go by another configuration, one that is within reach
    (:func:`edxagent.lms.changes.within_reach`); returns what has them do so. Nothing has changed yet.

    Whatever is under way ends by the configuration by which it began. A bridge that is gone fetches nothing more, and
    posts the verdicts on what it has fetched.

    :param maker: made the parts.
    :param running: whether the parts are at work.
    :raises ConfigError: a part can't go by it, or a sink doesn't start.
    :raises BrokerError: the broker doesn't let us have a queue.
    """
    steps, after = _with_bridges(maker, parts, config, running)
    after = evolve(after, sinks=_sinks(maker, parts, config))
    await _ensure_queues(parts.publishing, config)
    if parts.gateway is not None and parts.pull is not None and config.gateway is not None:
        steps.append(await parts.gateway.prepared(config.gateway, agent_answers(config)))
        steps.append(partial(parts.pull.use, config.gateway, config.failure, results_key(config)))
    started: list[IService] = []
    try:
        if running:
            _start_sinks(after, parts, started)
        use: Callable[[], Deferred[None]] = partial(succeed, None)
        if parts.updater is not None and config.updater is not None:
            use = await parts.updater.prepared(config.updater, after.answering, config.drain_timeout)
    except BaseException:
        for sink in started:
            await maybeDeferred(sink.stopService)
        raise

    def change() -> Altered:
        maker.config = config
        if parts.ledger is not None and config.ledger is not None:
            parts.ledger.keep = config.ledger.keep
        for step in steps:
            step()
        left = [sink for name, sink in parts.sink_services.items() if after.sink_services.get(name) is not sink]
        return Altered(parts=after, left=left, over=use())

    return change


def _with_bridges(
    maker: PartsMaker, parts: Parts, config: LMSConfig, running: bool
) -> tuple[list[Callable[[], object]], Parts]:
    """What the bridges have to do, and the parts with all of them, also those that are gone."""
    before = {bridge.name: bridge for bridge in maker.config.bridges}
    messages = config.failure.messages
    told_anew = messages != maker.config.failure.messages
    steps: list[Callable[[], object]] = []
    bridges = dict(parts.bridges)
    for bridge in config.bridges:
        if bridge.name not in bridges:
            made = bridges[bridge.name] = maker.bridge(bridge, config, parts.publisher, parts.ledger)
            if running:
                steps.append(made.startService)
        elif told_anew or bridge != before.get(bridge.name):
            with blamed(bridge.origin):
                steps.append(bridges[bridge.name].prepared(bridge, messages))
    wanted = {bridge.name for bridge in config.bridges}
    steps += [bridge.rest for name, bridge in bridges.items() if name not in wanted]
    return steps, evolve(parts, bridges=bridges)


def _sinks(maker: PartsMaker, parts: Parts, config: LMSConfig) -> dict[str, IResultSink]:
    """The sinks: those that stay what they are, and new ones."""
    if maker.own_sinks is not None:
        return dict(parts.sinks)
    before = {sink.name: sink for sink in maker.config.sinks}
    at_once = [updater and updater.concurrency for updater in (maker.config.updater, config.updater)]
    return {
        sink.name: parts.sinks[sink.name]
        if sink == before.get(sink.name) and at_once[0] == at_once[1]
        else maker.sink(sink, config)
        for sink in config.sinks
    }


def _start_sinks(after: Parts, before: Parts, started: list[IService]) -> None:
    """Start the sinks that are new, and enter them into ``started``."""
    for name, sink in after.sink_services.items():
        if before.sink_services.get(name) is not sink:
            try:
                sink.startService()
            except Exception as error:
                raise ConfigError([f"[sink:{name}] it doesn't start: {plain_reason(error)}"]) from error
            started.append(sink)


async def _ensure_queues(link: BrokerLink, config: LMSConfig) -> None:
    """See to queues that are new, over the connection that there is; without one, the next one's preparation will."""
    while (session := link.session) is not None:
        try:
            await ensure_submission_queues(session, config)
        except BrokerUnreachable:
            if session.alive:
                raise
        if session is link.session:
            break
