"""Reference program of `tasks`: process tasks without any overhead.

An ASGI function checks a request, writes its record and publishes it, and returns the record when it is final. A worker
runs the pipeline, writes the result into the record and acknowledges the message. HTTP server, NATS client, streams and
revision checks are those of the service. There is no fairness between callers, no retries, cancellation, repairs, error
handling, metrics or logs.

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
from nats.errors import TimeoutError as NoMessageError
from nats.js import api

from app.codec.sniff import ImageInfo
from app.face.frame import Size
from benchmarks.reference import check, detect, read_body, read_multipart, render

if TYPE_CHECKING:
    from nats.aio.client import Client

STREAM: Final = "TASKS"  # as in the service, so that one function counts the messages of both
CONSUMER: Final = "workers"
BATCH: Final = 8
TTL: Final = "3600"


class Record(msgspec.Struct):
    """State of a task."""

    task_id: str
    status: str
    submitted_at: float
    completed_at: float | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")


class Work(msgspec.Struct, array_like=True):
    """Header of a message, which precedes the image."""

    task_id: str
    submitted_at: float
    revision: int
    width: int
    height: int
    format: str
    landmarks: bytes | None
    is_decoded: bool


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
    """Replace a revision of a record, and return the new revision."""
    headers = {"Nats-Expected-Last-Subject-Sequence": str(revision), "Nats-TTL": TTL}
    stored = await client.request(f"records.{record.task_id}", msgspec.json.encode(record), headers=headers, timeout=5)
    return _STORED.decode(stored.data).seq


async def submit(client: Client, body: bytes, content_type: bytes, *, is_decoded: bool) -> Record:
    """Check a request, write its record, and publish it."""
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
        is_decoded,
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
    """Submit a task, or return its final record."""
    global _client  # noqa: PLW0603 - one connection per process
    if scope["type"] != "http":
        return
    if _client is None:
        _client = await connect()
    location = b""
    if scope["method"] == "POST":
        content_type = dict(scope["headers"])[b"content-type"]
        is_decoded = parse_qs(scope["query_string"]).get(b"verify") == [b"pixels"]
        record = await submit(_client, await read_body(receive), content_type, is_decoded=is_decoded)
        code, content, location = 202, msgspec.json.encode(record), f"/status/{record.task_id}".encode()
    else:
        code, content = 200, await status(_client, scope["path"].rpartition("/")[2])
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": code, "headers": [*headers, (b"location", location)]})
    await send({"type": "http.response.body", "body": content})


def process_message(data: bytes) -> tuple[Record, int]:
    """Process a message; return the final record and the revision that it replaces."""
    view = memoryview(data)
    length = int.from_bytes(view[:4], "big")
    work = _WORK.decode(view[4 : 4 + length])
    image = view[4 + length :]
    info = ImageInfo(format=work.format, size=Size(work.width, work.height), exif_orientation=1)  # type: ignore[arg-type]
    if work.landmarks is None:
        result = render(info, detect(bytes(image)), is_detected=True)
    else:
        if work.is_decoded:
            cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
        result = render(info, np.frombuffer(work.landmarks, np.float32).reshape(-1, 2))
    final = Record(work.task_id, "SUCCESS", work.submitted_at, time.time(), msgspec.Raw(result))
    return final, work.revision


async def run_worker() -> None:
    """Pull messages in batches until stopped; acknowledge each when its record is written."""
    cv2.setNumThreads(0)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = await connect()
    subscription = await client.jetstream().pull_subscribe_bind(CONSUMER, STREAM)
    while not stop.is_set():
        with contextlib.suppress(NoMessageError):
            for message in await subscription.fetch(BATCH, timeout=1):
                await store(client, *process_message(message.data))
                await message.ack()
    await client.close()


if __name__ == "__main__":
    uvloop.run(run_worker())
