"""State of the work-queue stream and its consumer, as the server reports it."""

from __future__ import annotations

from dataclasses import dataclass
from operator import countOf
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import pybase64

from app.tasks.errors import QueueUnavailableError
from app.tasks.stream import LANES, STREAM, any_lane_subject, consumer_name, parse_task_subject, task_subject

if TYPE_CHECKING:
    from app.tasks.connection import Connection

T = TypeVar("T", bound=msgspec.Struct)

LISTING_TIMEOUT_S: Final = 30.0  # a listing of 100,000 subjects is several megabytes


class _State(msgspec.Struct):
    first_seq: int = 0
    last_seq: int = 0
    bytes: int = 0
    subjects: dict[str, int] | None = None


class _StreamInfo(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)
    total: int = 0  # of subjects
    error: dict[str, object] | None = None


class _Position(msgspec.Struct):
    stream_seq: int = 0


class ConsumerInfo(msgspec.Struct, frozen=True):
    """What the server reports of one consumer.

    Attributes:
        name: its name.
        num_pending: messages that were not delivered.
        num_ack_pending: messages that were delivered and not acknowledged.
        delivered: position of the last delivery.
        ack_floor: position up to which all messages are acknowledged.
    """

    name: str = ""
    num_pending: int = 0
    num_ack_pending: int = 0
    delivered: _Position = msgspec.field(default_factory=_Position)
    ack_floor: _Position = msgspec.field(default_factory=_Position)

    @property
    def tracked(self) -> int:
        """Messages that the consumer will deliver, or waits to have acknowledged."""
        return self.num_pending + self.num_ack_pending


class _ConsumerList(msgspec.Struct):
    consumers: list[ConsumerInfo] | None = None
    error: dict[str, object] | None = None


class _Message(msgspec.Struct):
    seq: int = 0
    data: str = ""


class _MessageResponse(msgspec.Struct):
    message: _Message | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """The stream and its consumers at about the same time.

    Attributes:
        lanes: lane of each task whose message the stream holds, by task id.
        first_seq: sequence of the oldest message.
        before: state of each lane's consumer before the stream was read, by lane.
        after: the same after it.
    """

    lanes: dict[str, int]
    first_seq: int
    before: dict[int, ConsumerInfo]
    after: dict[int, ConsumerInfo]

    def untracked(self, lane: int) -> int:
        """Return how many messages of a lane its consumer does not track; negative if it tracks more.

        Messages that came or went while the state was read make no difference.
        """
        count = countOf(self.lanes.values(), lane)
        low, high = sorted((self.before[lane].tracked, self.after[lane].tracked))
        return count - min(max(count, low), high)


async def is_queued(connection: Connection, task_id: str) -> bool:
    """Return whether the stream holds a task's message, without transferring it.

    It may be in any lane: without API keys, the lane is that of an address, and a client may repeat a submission from
    another address.

    Raises:
        QueueUnavailableError: no response.
    """
    for subject in (task_subject(task_id), any_lane_subject(task_id)):
        if (await _list_subjects(connection, subject))[1]:
            return True
    return False


async def list_consumers(connection: Connection, timeout_s: float | None = None) -> dict[int, ConsumerInfo]:
    """Return the state of each lane's consumer, by lane.

    Raises:
        QueueUnavailableError: no response, or a consumer is missing.
    """
    response = await _ask(connection, f"CONSUMER.LIST.{STREAM}", _ConsumerList, timeout_s=timeout_s)
    found = {consumer.name: consumer for consumer in response.consumers or ()}
    try:
        return {lane: found[consumer_name(lane)] for lane in range(LANES)}
    except KeyError:
        connection.recheck_streams()
        raise QueueUnavailableError("a consumer of the queue is missing; it is created again") from None


async def read_state(connection: Connection) -> QueueState:
    """Read the state of the stream and of its consumers.

    Raises:
        QueueUnavailableError: no response, or the stream or a consumer is missing.
    """
    before = await list_consumers(connection)
    first_seq, subjects = await _list_subjects(connection, "tasks.>")
    after = await list_consumers(connection)
    return QueueState(lanes=dict(map(parse_task_subject, subjects)), first_seq=first_seq, before=before, after=after)


async def read_last_sequence(connection: Connection, stream: str) -> int:
    """Return the sequence of the last message that a stream received.

    Raises:
        QueueUnavailableError: no response, or the stream is missing.
    """
    return (await _ask(connection, f"STREAM.INFO.{stream}", _StreamInfo)).state.last_seq


async def read_stored_bytes(connection: Connection) -> int:
    """Return the bytes of the messages that wait or are worked on.

    Raises:
        QueueUnavailableError: no response, or the stream is missing.
    """
    return (await _ask(connection, f"STREAM.INFO.{STREAM}", _StreamInfo)).state.bytes


async def read_message(connection: Connection, task_id: str, lane: int) -> tuple[int, bytes] | None:
    """Read a task's message and its sequence; None if the stream does not hold it.

    Raises:
        QueueUnavailableError: no response.
    """
    request = msgspec.json.encode({"last_by_subj": task_subject(task_id, lane)})
    response = await connection.request(f"$JS.API.STREAM.MSG.GET.{STREAM}", request)
    message = msgspec.json.decode(response.data, type=_MessageResponse).message
    return None if message is None else (message.seq, pybase64.b64decode(message.data))


async def delete_message(connection: Connection, sequence: int) -> None:
    """Delete one message of the tasks stream.

    Raises:
        QueueUnavailableError: no response.
    """
    request = msgspec.json.encode({"seq": sequence, "no_erase": True})
    await connection.request(f"$JS.API.STREAM.MSG.DELETE.{STREAM}", request)


async def _list_subjects(connection: Connection, subject: str) -> tuple[int, set[str]]:
    """Return the stream's first sequence, and the subjects that match."""
    found: set[str] = set()
    while True:
        request = msgspec.json.encode({"subjects_filter": subject, "offset": len(found)})
        info = await _ask(connection, f"STREAM.INFO.{STREAM}", _StreamInfo, request, LISTING_TIMEOUT_S)
        page = info.state.subjects or {}
        found |= page.keys()
        if not page or len(found) >= info.total:
            return info.state.first_seq, found


async def _ask(
    connection: Connection, path: str, kind: type[T], request: bytes = b"", timeout_s: float | None = None
) -> T:
    response = msgspec.json.decode(
        (await connection.request(f"$JS.API.{path}", request, timeout_s=timeout_s)).data, type=kind
    )
    if getattr(response, "error", None) is not None:
        connection.recheck_streams()
        raise QueueUnavailableError("the queue's streams are missing; they are created again")
    return response
