"""A caller that saturates the service with many connections, each of which sends one request repeatedly.

After a refusal, it pauses for less than `Retry-After`: without a pause, it would use all CPU time of the machine.

Usage: python flood.py HOST PORT SOURCE CONNECTIONS KEY BODY_FILE CONTENT_TYPE. It ends when standard input ends, and
prints the number of responses by status as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

PATH = "/api/v1/frontal/crop"
PAUSE_S = 0.5


async def flood(request: bytes, host: str, port: int, source: str, counts: Counter[str]) -> None:
    """Send requests one after the other on one connection, or on a new one if it is closed."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(host, port, local_addr=(source, 0))
        except OSError:
            counts["unconnected"] += 1
            await asyncio.sleep(0.05)
            continue
        try:
            while True:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                counts[head.split(b" ", 2)[1].decode()] += 1
                length = next(
                    int(line.partition(b":")[2])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                await reader.readexactly(length)
                if b"connection: close" in head.lower():
                    await asyncio.sleep(PAUSE_S)
                    break
        except (OSError, asyncio.IncompleteReadError):
            counts["broken"] += 1
        finally:
            writer.transport.abort()


async def main(body: bytes) -> None:
    """Run until standard input ends."""
    host, port, source, connections, key, _, content_type = sys.argv[1:]
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    head += f"X-API-Key: {key}\r\n\r\n" if key else "\r\n"
    counts: Counter[str] = Counter()
    senders = [
        asyncio.create_task(flood(head.encode() + body, host, int(port), source, counts))
        for _ in range(int(connections))
    ]
    await asyncio.to_thread(sys.stdin.read)
    for sender in senders:
        sender.cancel()
    await asyncio.gather(*senders, return_exceptions=True)
    print(json.dumps(counts))  # noqa: T201 - the result


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[6]).read_bytes()))
