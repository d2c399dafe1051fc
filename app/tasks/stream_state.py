"""State of the work-queue stream and its consumer, as the server reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import pybase64

from app.tasks.errors import QueueUnavailableError
from app.tasks.stream import CONSUMER, STREAM, task_subject

if TYPE_CHECKING:
    from app.tasks.connection import Connection

T = TypeVar("T", bound=msgspec.Struct)

LISTING_TIMEOUT_S: Final = 30.0  # a listing of 100,000 subjects is several megabytes


class _ApiError(msgspec.Struct):
    code: int = 0
    description: str = ""


class _State(msgspec.Struct):
    messages: int = 0
    first_seq: int = 0
    last_seq: int = 0
    subjects: dict[str, int] | None = None


class _StreamInfo(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)
    paged: int = msgspec.field(default=0, name="total")
    error: _ApiError | None = None


class _Position(msgspec.Struct):
    stream_seq: int = 0


class _ConsumerInfo(msgspec.Struct):
    num_pending: int = 0
    num_ack_pending: int = 0
    delivered: _Position = msgspec.field(default_factory=_Position)
    error: _ApiError | None = None


class _Message(msgspec.Struct):
    seq: int = 0
    data: str = ""


class _MessageResponse(msgspec.Struct):
    message: _Message | None = None
    error: _ApiError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """The stream and its consumer at about the same time.

    Attributes:
        messages: messages in the stream.
        first_seq: sequence of the oldest message.
        tracked: messages that the consumer will deliver or waits to have acknowledged.
        delivered_seq: highest sequence that was delivered at least once.
    """

    messages: int
    first_seq: int
    tracked: int
    delivered_seq: int


async def is_queued(connection: Connection, task_id: str) -> bool:
    """Return whether the stream holds a task's message, without transferring it.

    Raises:
        QueueUnavailableError: no response.
    """
    return bool(await _list_subjects(connection, task_subject(task_id)))


async def list_queued(connection: Connection) -> set[str]:
    """Return the ids of the tasks whose messages the stream holds.

    Raises:
        QueueUnavailableError: no response.
    """
    return {subject.rpartition(".")[2] for subject in await _list_subjects(connection, "tasks.>")}


async def read_state(connection: Connection) -> QueueState:
    """Read the state of the stream and of its consumer.

    Raises:
        QueueUnavailableError: no response, or the stream or its consumer is missing.
    """
    consumer = await _ask(connection, f"CONSUMER.INFO.{STREAM}.{CONSUMER}", _ConsumerInfo)
    stream = await _ask(connection, f"STREAM.INFO.{STREAM}", _StreamInfo)
    return QueueState(
        messages=stream.state.messages,
        first_seq=stream.state.first_seq,
        tracked=consumer.num_pending + consumer.num_ack_pending,
        delivered_seq=consumer.delivered.stream_seq,
    )


async def read_last_sequence(connection: Connection, stream: str) -> int:
    """Return the sequence of the last message that a stream received.

    Raises:
        QueueUnavailableError: no response, or the stream is missing.
    """
    return (await _ask(connection, f"STREAM.INFO.{stream}", _StreamInfo)).state.last_seq


async def read_message(connection: Connection, task_id: str) -> tuple[int, bytes] | None:
    """Read a task's message and its sequence; None if the stream does not hold it.

    Raises:
        QueueUnavailableError: no response.
    """
    request = msgspec.json.encode({"last_by_subj": task_subject(task_id)})
    response = await connection.request(f"$JS.API.STREAM.MSG.GET.{STREAM}", request)
    message = msgspec.json.decode(response.data, type=_MessageResponse).message
    return None if message is None else (message.seq, pybase64.b64decode(message.data))


async def _list_subjects(connection: Connection, subject: str) -> set[str]:
    found: set[str] = set()
    while True:
        request = msgspec.json.encode({"subjects_filter": subject, "offset": len(found)})
        info = await _ask(connection, f"STREAM.INFO.{STREAM}", _StreamInfo, request, LISTING_TIMEOUT_S)
        page = info.state.subjects or {}
        found |= page.keys()
        if not page or len(found) >= info.paged:
            return found


async def _ask(
    connection: Connection, path: str, kind: type[T], request: bytes = b"", timeout_s: float | None = None
) -> T:
    response = msgspec.json.decode(
        (await connection.request(f"$JS.API.{path}", request, timeout_s=timeout_s)).data, type=kind
    )
    if getattr(response, "error", None) is not None:
        connection.prepare_again()
        raise QueueUnavailableError("the queue's streams are missing; they are created again")
    return response
