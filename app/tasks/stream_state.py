"""State of the streams and consumers, and single messages of the work queue, through the JetStream API.

All functions raise `QueueUnavailableError` if the server does not respond, or if a stream or a consumer is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import countOf
from typing import TYPE_CHECKING, Final

import msgspec
import pybase64

from app.tasks.connection import ApiError  # noqa: TC001 - msgspec reads the annotation at run time
from app.tasks.errors import QueueUnavailableError
from app.tasks.stream import LANES, STREAM, any_lane_subject, consumer_name, parse_task_subject, task_subject

if TYPE_CHECKING:
    from app.tasks.connection import Connection

LISTING_TIMEOUT_S: Final = 30.0  # a listing of 100,000 subjects is several megabytes


class StreamState(msgspec.Struct, frozen=True):
    """State of a stream."""

    messages: int = 0
    bytes: int = 0  # size of all messages
    first_seq: int = 0  # sequence of the oldest message
    first_ts: str = ""  # time of the oldest message, in RFC 3339
    last_seq: int = 0  # sequence of the last message that the stream received
    subjects: dict[str, int] | None = None  # number of messages by subject, if requested


class _StreamInfo(msgspec.Struct):
    state: StreamState = msgspec.field(default_factory=StreamState)
    total: int = 0  # number of subjects
    error: ApiError | None = None


class _Position(msgspec.Struct):
    stream_seq: int = 0


class ConsumerInfo(msgspec.Struct, frozen=True):
    """State of a consumer."""

    name: str = ""
    num_pending: int = 0  # messages that were not delivered
    num_ack_pending: int = 0  # messages that were delivered and not acknowledged
    delivered: _Position = msgspec.field(default_factory=_Position)  # position of the last delivery
    # Position up to which all messages are acknowledged.
    ack_floor: _Position = msgspec.field(default_factory=_Position)

    @property
    def tracked(self) -> int:
        """Messages that the consumer will deliver, or whose acknowledgement it awaits."""
        return self.num_pending + self.num_ack_pending


class _ConsumerList(msgspec.Struct):
    consumers: list[ConsumerInfo] | None = None
    error: ApiError | None = None


class _Limits(msgspec.Struct):
    max_storage: int = -1


class _AccountInfo(msgspec.Struct):
    limits: _Limits = msgspec.field(default_factory=_Limits)
    error: ApiError | None = None


class StoredMessage(msgspec.Struct):
    """A message of a stream; ``data`` and ``hdrs`` are in base64."""

    seq: int = 0
    data: str = ""
    hdrs: str = ""
    time: str = ""


class MessageResponse(msgspec.Struct):
    """Response to a request for a message."""

    message: StoredMessage | None = None
    error: ApiError | None = None


_MESSAGE_RESPONSE: Final = msgspec.json.Decoder(MessageResponse)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """The work queue and its consumers at about the same time."""

    lanes: dict[str, int]  # lane of each task whose message the stream holds, by task id
    first_seq: int  # sequence of the oldest message
    before: dict[int, ConsumerInfo]  # state of each lane's consumer before the stream was read, by lane
    after: dict[int, ConsumerInfo]  # the same after it

    def untracked(self, lane: int) -> int:
        """Return how many messages of a lane its consumer does not track; negative if it tracks more.

        Messages that came or went while the state was read make no difference.
        """
        count = countOf(self.lanes.values(), lane)
        low, high = sorted((self.before[lane].tracked, self.after[lane].tracked))
        return count - min(max(count, low), high)


async def find_lane(connection: Connection, task_id: str) -> int | None:
    """Return the lane of a task's message, without transferring the message; None if the stream does not hold it.

    The message may be in any lane: without API keys, the lane is that of an address, and a client may repeat a
    submission from another address.
    """
    for subject in (task_subject(task_id), any_lane_subject(task_id)):
        # A single subject; the timeout of a full listing would be longer than a client waits for its response.
        for found in (await _list_subjects(connection, subject, timeout_s=None))[1]:
            return parse_task_subject(found)[1]
    return None


async def list_consumers(connection: Connection, timeout_s: float | None = None) -> dict[int, ConsumerInfo]:
    """Return the state of each lane's consumer, by lane."""
    response = await connection.call_api(f"CONSUMER.LIST.{STREAM}", _ConsumerList, timeout_s=timeout_s)
    found = {consumer.name: consumer for consumer in response.consumers or ()}
    try:
        return {lane: found[consumer_name(lane)] for lane in range(LANES)}
    except KeyError:
        connection.recheck_streams()
        raise QueueUnavailableError("a consumer of the queue is missing and is being created; retry later") from None


async def read_state(connection: Connection) -> QueueState:
    """Return the state of the work queue and of its consumers."""
    before = await list_consumers(connection)
    first_seq, subjects = await _list_subjects(connection, "tasks.>")
    after = await list_consumers(connection)
    return QueueState(lanes=dict(map(parse_task_subject, subjects)), first_seq=first_seq, before=before, after=after)


async def read_stream(connection: Connection, stream: str, timeout_s: float | None = None) -> StreamState:
    """Return the state of a stream."""
    return (await connection.call_api(f"STREAM.INFO.{stream}", _StreamInfo, timeout_s=timeout_s)).state


async def read_storage_limit(connection: Connection, timeout_s: float | None = None) -> int | None:
    """Return how many bytes this account may store; None if only the server has a limit."""
    limit = (await connection.call_api("INFO", _AccountInfo, timeout_s=timeout_s)).limits.max_storage
    return limit if limit > 0 else None


async def read_last_message(connection: Connection, stream: str, subject: str) -> MessageResponse:
    """Return the last message of a subject, from the leader of the stream."""
    request = msgspec.json.encode({"last_by_subj": subject})
    return _MESSAGE_RESPONSE.decode((await connection.request(f"$JS.API.STREAM.MSG.GET.{stream}", request)).data)


async def read_message(connection: Connection, task_id: str, lane: int) -> tuple[int, bytes] | None:
    """Return the sequence and the data of a task's message; None if the stream does not hold it."""
    message = (await read_last_message(connection, STREAM, task_subject(task_id, lane))).message
    return None if message is None else (message.seq, pybase64.b64decode(message.data))


async def delete_message(connection: Connection, sequence: int) -> None:
    """Delete a message of the work queue."""
    request = msgspec.json.encode({"seq": sequence, "no_erase": True})
    await connection.request(f"$JS.API.STREAM.MSG.DELETE.{STREAM}", request)


async def _list_subjects(
    connection: Connection, subject: str, *, timeout_s: float | None = LISTING_TIMEOUT_S
) -> tuple[int, set[str]]:
    """Return the stream's first sequence, and the subjects that match."""
    found: set[str] = set()
    while True:
        request = msgspec.json.encode({"subjects_filter": subject, "offset": len(found)})
        info = await connection.call_api(f"STREAM.INFO.{STREAM}", _StreamInfo, request, timeout_s)
        page = info.state.subjects or {}
        found |= page.keys()
        if not page or len(found) >= info.total:
            return info.state.first_seq, found
