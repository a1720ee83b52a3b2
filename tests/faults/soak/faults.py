"""What may happen in the soak. Each fault is a function that returns when it is over, and says what it did."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM

from edxagent.model import RESULTS_EXCHANGE
from tests.amqp_support import known_to_the_disk
from tests.cli_process import until
from tests.faults.processes import state
from tests.faults.soak.agents import SAME
from tests.faults.soak.scene import DIRECTIONS, Scene

WATERMARK = "0.4"

Fault = Callable[[Scene], Awaitable[str]]


# The agent's process


async def kill(scene: Scene) -> str:
    """``kill -9`` of the agent that a supervisor starts again."""
    await scene.victim.kill()
    seconds = await scene.pause(0, 1)
    scene.victim.start()
    return f"victim killed, started again {seconds:.1f} s later"


async def terminate(scene: Scene) -> str:
    """``TERM``, and started again."""
    await scene.victim.end(SIGTERM)
    scene.victim.start()
    return "victim told to stop, and started again"


async def freeze(scene: Scene) -> str:
    """``SIGSTOP``, for longer than heartbeats allow or not."""
    agent = scene.some_agent()
    agent.process.send_signal(SIGSTOP)
    await until(lambda: state(agent.process.pid) == "T")
    seconds = await scene.pause(0.3, 9)
    agent.process.send_signal(SIGCONT)
    return f"{agent.name} frozen for {seconds:.1f} s"


async def reload(scene: Scene) -> str:
    """``HUP`` with another concurrency and other weights."""
    agent = scene.some_agent()
    agent.concurrency = scene.chance.randint(*scene.concurrencies)
    agent.weights = {queue: scene.chance.randint(1, 4) for queue in agent.weights}
    await scene.reload(agent)
    return f"{agent.name} told of concurrency {agent.concurrency} and weights {list(agent.weights.values())}"


async def reload_badly(scene: Scene) -> str:
    """``HUP`` with a file that can't be used."""
    agent = scene.some_agent()
    times = agent.process.log.count(SAME) + 1
    agent.configure(agent={"concurency": 3})
    agent.process.send_signal(SIGHUP)
    await agent.process.says(SAME, times)
    agent.configure()
    return f"{agent.name} told of a bad file"


# The network


async def reset(scene: Scene) -> str:
    """A RST of one connection, or of all of one agent's, or of all."""
    how = scene.chance.choice(("one", "agent", "all"))
    if how == "one":
        connection, name = await scene.some_connection()
        connection.reset()
        return f"a connection of {name} reset"
    agents = [scene.some_agent()] if how == "agent" else scene.agents
    for agent in agents:
        agent.proxy.reset()
    return f"all connections of {' and '.join(agent.name for agent in agents)} reset"


async def reset_often(scene: Scene) -> str:
    """All connections of one agent reset as soon as they are there, ten times in a row."""
    agent = scene.some_agent()
    for _ in range(10):
        await agent.whole()
        agent.proxy.reset()
    return f"all connections of {agent.name} reset 10 times"


async def half_close(scene: Scene) -> str:
    """One direction of a connection is closed."""
    connection, name = await scene.some_connection()
    direction = scene.chance.choice(DIRECTIONS)
    getattr(connection, direction).half_close()
    return f"a connection of {name} half closed, {direction}"


async def stall(scene: Scene) -> str:
    """One direction is a black hole, for shorter or longer than heartbeats allow; then what waited goes through."""
    connection, name = await scene.some_connection()
    direction = scene.chance.choice(DIRECTIONS)
    stream = getattr(connection, direction)
    stream.stall()
    seconds = await scene.pause(0.3, 9)
    stream.heal()
    return f"a connection of {name} silent {direction} for {seconds:.1f} s"


async def black_hole(scene: Scene) -> str:
    """All connections of one agent, and the new ones that it makes, are silent both ways; then they are cut."""
    agent = scene.some_agent()
    with scene.each_connection(agent, lambda stream: stream.stall()):
        seconds = await scene.pause(0.3, 9)
    agent.proxy.reset()
    return f"all connections of {agent.name} silent for {seconds:.1f} s, then reset"


async def trickle(scene: Scene) -> str:
    """A few bytes at a time get through one direction of a connection."""
    connection, name = await scene.some_connection()
    direction = scene.chance.choice(DIRECTIONS)
    stream = getattr(connection, direction)
    count = scene.chance.choice((1, 100))
    stream.trickle(count, 0.1)
    seconds = await scene.pause(0.3, 6)
    stream.heal()
    return f"a connection of {name} passed {count} bytes each 0.1 s {direction} for {seconds:.1f} s"


async def delay(scene: Scene) -> str:
    """All that one agent says and hears takes longer."""
    agent = scene.some_agent()
    latency = scene.chance.uniform(0.05, 0.5)
    with scene.each_connection(agent, lambda stream: stream.delay(latency)):
        seconds = await scene.pause(1, 5)
    return f"all connections of {agent.name} delayed by {latency:.2f} s for {seconds:.1f} s"


async def cut(scene: Scene) -> str:
    """A connection is cut after some more bytes, in the middle of a frame as likely as not."""
    agent = scene.some_agent()
    connection, _ = await scene.some_connection(agent)
    direction = scene.chance.choice(DIRECTIONS)
    stream = getattr(connection, direction)
    before, count = agent.proxy.did["cut"], scene.chance.randrange(1, 5000)
    stream.cut_at(stream.passed + count)
    await until(lambda: agent.proxy.did["cut"] > before or connection not in agent.proxy.connections)
    return f"a connection of {agent.name} cut after {count} bytes more {direction}"


async def refuse(scene: Scene) -> str:
    """No way to the broker for a while."""
    agent = scene.some_agent()
    await agent.proxy.refuse()
    agent.proxy.reset()
    seconds = await scene.pause(0.3, 5)
    agent.proxy.accept()
    return f"no connection for {agent.name} for {seconds:.1f} s"


# The broker


async def kill_broker(scene: Scene) -> str:
    """``kill -9`` of RabbitMQ, and started again."""
    return await _restart_broker(scene, SIGKILL, "killed")


async def stop_broker(scene: Scene) -> str:
    """RabbitMQ stopped in order, and started again."""
    return await _restart_broker(scene, SIGTERM, "stopped")


async def _restart_broker(scene: Scene, number: int, how: str) -> str:
    await until(lambda: known_to_the_disk(scene.node, *scene.queues))
    await scene.node.kill(number)
    seconds = await scene.pause(0, 2)
    await scene.node.start()
    return f"broker {how}, started {seconds:.1f} s later"


async def close_connections(scene: Scene) -> str:
    """The broker closes every connection, ours too."""
    await scene.node.rabbitmqctl("close_all_connections", "a person did it")
    return "all connections closed by the broker"


async def alarm(scene: Scene) -> str:
    """RabbitMQ is short of memory, and blocks who publishes."""
    await scene.node.rabbitmqctl("set_vm_memory_high_watermark", "0.000001")
    seconds = await scene.pause(0.5, 5)
    await scene.node.rabbitmqctl("set_vm_memory_high_watermark", WATERMARK)
    return f"broker short of memory for {seconds:.1f} s"


async def unbind_results(scene: Scene) -> str:
    """Verdicts lead nowhere."""
    async with scene.channel() as channel:
        await channel.queue_unbind(queue=scene.results, exchange=RESULTS_EXCHANGE, routing_key=scene.results)
    seconds = await scene.pause(0.3, 4)
    async with scene.channel() as channel:
        await channel.bind_queue(scene.results, RESULTS_EXCHANGE, scene.results)
    return f"results queue unbound for {seconds:.1f} s"


async def delete_results(scene: Scene) -> str:
    """The results queue is gone. It was empty: what is deleted with it, nobody could bring back."""
    await scene.quiet()
    async with scene.channel() as channel:
        await channel.delete_queue(scene.results)
    scene.load.begin()
    seconds = await scene.pause(0.5, 4)
    async with scene.channel() as channel:
        await channel.declare_queue(scene.results, arguments={"x-queue-type": "quorum"})
        await channel.bind_queue(scene.results, RESULTS_EXCHANGE, scene.results)
    return f"results queue deleted, made anew {seconds:.1f} s later"


async def delete_requests(scene: Scene) -> str:
    """A queue for requests is gone, with its consumers; it was empty. The agents make it anew themselves."""
    queue = scene.chance.choice(list(scene.witness.weights))
    await scene.quiet()
    async with scene.channel() as channel:
        await channel.delete_queue(queue)
    scene.load.begin()
    return "a queue for requests deleted"


# The grader


async def grader_outage(scene: Scene) -> str:
    """The grader is unavailable for so many submissions in a row that breakers open."""
    ids = set(await scene.load.send(["retried"] * scene.chance.randint(10, 25)))
    # While a breaker is open one after the other of them is tried; when all were, the grader is there again.
    await until(lambda: not ids & scene.ledger.missing)
    return f"grader unavailable for {len(ids)} submissions"


FAULTS: Mapping[str, Fault] = {
    "agent killed": kill,
    "agent told to stop": terminate,
    "agent frozen": freeze,
    "configuration changed": reload,
    "configuration spoilt": reload_badly,
    "connections reset": reset,
    "connections reset in a row": reset_often,
    "connection half closed": half_close,
    "connection silent": stall,
    "all connections silent": black_hole,
    "connection trickling": trickle,
    "connections slow": delay,
    "connection cut": cut,
    "connections refused": refuse,
    "broker killed": kill_broker,
    "broker stopped": stop_broker,
    "connections closed by the broker": close_connections,
    "broker short of memory": alarm,
    "results queue unbound": unbind_results,
    "results queue deleted": delete_results,
    "requests queue deleted": delete_requests,
    "grader unavailable": grader_outage,
}
"""In words, for the report → what happens."""
