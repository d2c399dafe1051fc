"""The smallest honest program that does the same steps for a task: the yardstick of `tasks.py`.

An ASGI function that checks a request, writes its record and queues it, and answers with the record once it is final; a
worker that does the pipeline's steps, writes the result into the record and acknowledges. The same HTTP server, NATS
client, streams and revision checks as in the product, and nothing else: no fairness between callers, no retries, no
cancelling, no repairs, no errors reported, no metrics, no logs.

Example: NATS_URL=nats://127.0.0.1:4222 uvicorn benchmarks.reference_tasks:app --port 8001
Example: NATS_URL=nats://127.0.0.1:4222 python -m benchmarks.reference_tasks
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import cv2
import msgspec
import nats
import numpy as np
import uvloop
from nats.errors import TimeoutError as NothingQueuedError
from nats.js import api

from app.codec.sniff import ImageInfo
from app.face.frame import Size
from benchmarks.reference import check, draw, find, read_body, read_multipart

if TYPE_CHECKING:
    from nats.aio.client import Client

STREAM: Final = "TASKS"  # as in the product, so that one function counts the messages of both
CONSUMER: Final = "workers"
BATCH: Final = 8
TTL: Final = "3600"


class Record(msgspec.Struct):
    """What is known of a task."""

    task_id: str
    status: str
    submitted_at: float
    completed_at: float | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")


class Work(msgspec.Struct, array_like=True):
    """What a message says beside the photo."""

    task_id: str
    submitted_at: float
    revision: int
    width: int
    height: int
    format: str
    landmarks: bytes | None
    decodes: bool


class _Stored(msgspec.Struct):
    seq: int


_RECORD = msgspec.json.Decoder(Record)
_STORED = msgspec.json.Decoder(_Stored)
_WORK = msgspec.msgpack.Decoder(Work)
_client: Client | None = None


async def connect() -> Client:
    """Connect, and create the streams and the consumer if they are missing."""
    client = await nats.connect(os.environ["NATS_URL"])
    manager = client.jetstream()
    await manager.add_stream(
        api.StreamConfig(name=STREAM, subjects=["tasks.*"], retention=api.RetentionPolicy.WORK_QUEUE)
    )
    await manager.add_stream(
        api.StreamConfig(
            name="RECORDS",
            subjects=["records.*"],
            max_msgs_per_subject=1,
            allow_direct=True,
            allow_msg_ttl=True,
            republish=api.RePublish(src="records.*", dest="notices.{{wildcard(1)}}"),
        )
    )
    await manager.add_consumer(
        STREAM, api.ConsumerConfig(durable_name=CONSUMER, ack_policy=api.AckPolicy.EXPLICIT, ack_wait=30)
    )
    return client


async def store(client: Client, record: Record, revision: int) -> int:
    """Replace the record of a revision; return the new one."""
    headers = {"Nats-Expected-Last-Subject-Sequence": str(revision), "Nats-TTL": TTL}
    stored = await client.request(f"records.{record.task_id}", msgspec.json.encode(record), headers=headers, timeout=5)
    return _STORED.decode(stored.data).seq


async def submit(client: Client, body: bytes, content_type: bytes, *, decodes: bool) -> Record:
    """Check a request, write its record, queue it."""
    image, points = read_multipart(body, content_type)
    info, landmarks_px = check(image, points)
    record = Record(uuid.uuid4().hex, "PENDING", time.time())
    work = Work(
        record.task_id,
        record.submitted_at,
        await store(client, record, 0),
        info.size.width,
        info.size.height,
        info.format,
        None if landmarks_px is None else landmarks_px.tobytes(),
        decodes,
    )
    header = msgspec.msgpack.encode(work)
    message = b"".join((len(header).to_bytes(4, "big"), header, image))
    headers = {"Nats-Msg-Id": record.task_id}
    _STORED.decode((await client.request(f"tasks.{record.task_id}", message, headers=headers, timeout=5)).data)
    return record


async def status(client: Client, task_id: str) -> bytes:
    """Return the record of a task once it is final."""
    record = await _read(client, task_id)
    if _RECORD.decode(record).status != "PENDING":
        return record
    notices = await client.subscribe(f"notices.{task_id}")
    record = await _read(client, task_id)
    while _RECORD.decode(record).status == "PENDING":
        record = (await notices.next_msg(timeout=60)).data
    await notices.unsubscribe()
    return record


async def _read(client: Client, task_id: str) -> bytes:
    return (await client.request(f"$JS.API.DIRECT.GET.RECORDS.records.{task_id}", timeout=5)).data


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Submit a task, or answer with its record."""
    global _client  # noqa: PLW0603 - one for the process
    if scope["type"] != "http":
        return
    if _client is None:
        _client = await connect()
    place = b""
    if scope["method"] == "POST":
        content_type = dict(scope["headers"])[b"content-type"]
        decodes = parse_qs(scope["query_string"]).get(b"verify") == [b"pixels"]
        record = await submit(_client, await read_body(receive), content_type, decodes=decodes)
        code, answer, place = 202, msgspec.json.encode(record), f"/status/{record.task_id}".encode()
    else:
        code, answer = 200, await status(_client, scope["path"].rpartition("/")[2])
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": code, "headers": [*headers, (b"location", place)]})
    await send({"type": "http.response.body", "body": answer})


def do(data: bytes) -> tuple[Record, int]:
    """Do the work of a message; return the final record, and the revision that it replaces."""
    view = memoryview(data)
    length = int.from_bytes(view[:4], "big")
    work = _WORK.decode(view[4 : 4 + length])
    image = view[4 + length :]
    info = ImageInfo(format=work.format, size=Size(work.width, work.height), exif_orientation=1)  # type: ignore[arg-type]
    if work.landmarks is None:
        result = draw(info, find(bytes(image)), is_found=True)
    else:
        if work.decodes:
            cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
        result = draw(info, np.frombuffer(work.landmarks, np.float32).reshape(-1, 2))
    final = Record(work.task_id, "SUCCESS", work.submitted_at, time.time(), msgspec.Raw(result))
    return final, work.revision


async def work_until_stopped() -> None:
    """Take messages in batches, do one after the other, acknowledge each once its record is written."""
    cv2.setNumThreads(0)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = await connect()
    source = await client.jetstream().pull_subscribe_bind(CONSUMER, STREAM)
    while not stop.is_set():
        with contextlib.suppress(NothingQueuedError):
            for message in await source.fetch(BATCH, timeout=1):
                await store(client, *do(message.data))
                await message.ack()
    await client.close()


if __name__ == "__main__":
    uvloop.run(work_until_stopped())
