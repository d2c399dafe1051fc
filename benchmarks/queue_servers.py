"""Measure how many messages one and three NATS servers store and deliver, and the CPU time that they need for it.

A message is published into a work queue on disk and acknowledged by the server, then delivered and acknowledged by the
consumer, as for a task. The servers flush to disk at the interval of the chart (`nats.syncInterval`). Servers and
client share the machine, so the CPU time per message is a better basis for planning than the rate. Three servers store
each message three times. The CPU time is the sum of all servers, and separately that of the busiest one.

Example: python -m benchmarks.queue_servers --output benchmarks/scaling.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import nats
import psutil
from nats.js import api
from nats.js.errors import ServiceUnavailableError
from rich.console import Console
from rich.table import Table

from benchmarks.processes import cpu_time_s, read, wait_until
from benchmarks.scaling_figures import FIGURES, store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nats.js import JetStreamContext

SERVERS = (1, 3)
# Size of a message in bytes, with the number of messages in a round.
SIZES = {100_000: 200, 1_000_000: 40}
ROUNDS = 3
OUTSTANDING = 16  # publications that wait for their acknowledgement
BATCH = 8
STREAM = "MEASURED"
SYNC_INTERVAL = "10s"
TIMEOUT_S = 60
RETRY_S = 0.1


class Servers(NamedTuple):
    """Running NATS servers: their URLs, separated by commas, and process ids."""

    url: str
    pids: list[int]


@contextlib.contextmanager
def run_servers(count: int) -> Iterator[Servers]:
    """Run a NATS server, or a cluster of several."""
    ports = _free_ports(3 * count)
    clients, monitors, routes = (ports[at::3] for at in range(3))
    program = str(Path(sys.executable).parent / "nats-server")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.ExitStack() as stack:
        pids = []
        for number in range(count):
            config = {
                "server_name": f"nats-{number}",
                "listen": f"127.0.0.1:{clients[number]}",
                "http": f"127.0.0.1:{monitors[number]}",
                "max_payload": 32 << 20,
                "jetstream": {
                    "store_dir": f"{folder}/store-{number}",
                    "max_file": 4 << 30,
                    "sync_interval": SYNC_INTERVAL,
                },
            }
            if count > 1:
                urls = [f"nats-route://127.0.0.1:{port}" for port in routes]
                config["cluster"] = {"name": "nats", "listen": f"127.0.0.1:{routes[number]}", "routes": urls}
            path = Path(folder) / f"{number}.conf"
            path.write_text(json.dumps(config))
            process = subprocess.Popen([program, "-c", str(path)], stderr=subprocess.DEVNULL)
            stack.callback(process.wait, TIMEOUT_S)
            stack.callback(process.terminate)
            pids.append(process.pid)
        wait_until(lambda: all(_is_healthy(port) for port in monitors))
        yield Servers(",".join(f"nats://127.0.0.1:{port}" for port in clients), pids)


def _free_ports(count: int) -> list[int]:
    """Return free ports below the ephemeral range, which the connections of other programs do not use."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(10_000, 20_000), 1000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError("no port is free")


def measure(count: int, size: int, messages: int) -> dict[str, float]:
    """Return the rates and the CPU time per message of one round, for a number of servers and a size."""
    with run_servers(count) as servers:
        return asyncio.run(_transfer(servers, count, size, messages))


async def _transfer(servers: Servers, replicas: int, size: int, messages: int) -> dict[str, float]:
    client = await nats.connect(servers.url.split(","), pending_size=64 << 20)
    jetstream = client.jetstream(timeout=TIMEOUT_S)
    await jetstream.add_stream(
        name=STREAM, subjects=["measured"], retention=api.RetentionPolicy.WORK_QUEUE, num_replicas=replicas
    )
    await _publish(jetstream, size, OUTSTANDING)  # so that connections and files exist
    await _consume(jetstream, OUTSTANDING)
    figures = {"publish": 0.0, "consume": 0.0}
    before_s = list(map(cpu_time_s, servers.pids))
    for name, transfer in (
        ("publish", _publish(jetstream, size, messages)),
        ("consume", _consume(jetstream, messages)),
    ):
        start = time.perf_counter()
        await transfer
        figures[name] = time.perf_counter() - start
    spent_s = [cpu_time_s(pid) - cpu_s for pid, cpu_s in zip(servers.pids, before_s, strict=True)]
    rss = max(psutil.Process(pid).memory_info().rss for pid in servers.pids)
    await client.close()
    return {
        "published_per_second": messages / figures["publish"],
        "consumed_per_second": messages / figures["consume"],
        "messages_per_second": messages / sum(figures.values()),
        "megabytes_per_second": messages * size / 1e6 / sum(figures.values()),
        "cpu_ms_per_message": 1000 * sum(spent_s) / messages,
        "busiest_cpu_ms_per_message": 1000 * max(spent_s) / messages,
        "rss_mb": rss / 1e6,
    }


async def _publish(jetstream: JetStreamContext, size: int, messages: int) -> None:
    body, slots = os.urandom(size), asyncio.Semaphore(OUTSTANDING)

    async def publish_one() -> None:
        async with slots:
            await jetstream.publish("measured", body)

    await asyncio.gather(*(publish_one() for _ in range(messages)))


async def _consume(jetstream: JetStreamContext, messages: int) -> None:
    consumer = await jetstream.pull_subscribe("measured", durable="measured")
    left = messages
    while left:
        try:
            batch = await consumer.fetch(min(BATCH, left), timeout=TIMEOUT_S)
        except ServiceUnavailableError:  # while the servers of a cluster elect a leader for the consumer
            await asyncio.sleep(RETRY_S)
            continue
        await asyncio.gather(*(message.ack_sync(timeout=TIMEOUT_S) for message in batch))
        left -= len(batch)


def _is_healthy(port: int) -> bool:
    with contextlib.suppress(OSError):
        return '"status":"ok"' in read(port, "/healthz").replace(" ", "")
    return False


def main() -> None:
    """Measure, print the figures, and store them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.queue_servers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds per case (default: %(default)s)")
    parser.add_argument("--servers", type=int, action="append", help="number of servers; repeatable (default: 1 and 3)")
    parser.add_argument("--output", type=Path, help=f"file to update, such as {FIGURES.name}; by default, none")
    arguments = parser.parse_args()
    cases = []
    for count in arguments.servers or SERVERS:
        for size, messages in SIZES.items():
            rounds = [measure(count, size, messages) for _ in range(arguments.rounds)]
            medians = {name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]}
            cases.append({"servers": count, "bytes": size, **medians})
    table = Table(*cases[0])
    for case in cases:
        table.add_row(*(f"{value:,.6g}" for value in case.values()))
    Console().print(table)
    if arguments.output:
        store(arguments.output, "queue_servers", cases)


if __name__ == "__main__":
    main()
