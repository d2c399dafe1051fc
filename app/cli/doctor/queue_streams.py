"""What the queue's server can do and what it holds, against the settings."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from app.cli.doctor.findings import Finding, error, mebibytes, note, ok, skipped, warning
from app.cli.doctor.queue_access import INFO, STREAMS, WORKERS, Answers, stream_info
from app.cli.doctor.queue_storage import judge_storage
from app.tasks.connection import MIN_SERVER
from app.tasks.embedded import PAYLOAD_MARGIN
from app.tasks.stream import CONSUMER, consumer_config, stream_configs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from app.cli.doctor.context import Context
    from app.cli.doctor.queue_address import Greeting
    from app.settings import Settings

# What a server never changes of a stream that is there.
_FIXED = {"storage", "retention", "subjects"}
_SETTINGS = {
    ("TASKS", "max_msgs"): "TASK_QUEUE_MAX_MESSAGES",
    ("TASKS", "max_bytes"): "TASK_QUEUE_MAX_BYTES",
    ("TASKS_DEAD", "max_bytes"): "TASK_DEAD_MAX_BYTES",
    (CONSUMER, "ack_wait"): "TASK_ACK_WAIT_S",
}
_COMPARED = ("storage", "retention", "subjects", "max_msgs", "max_bytes", "num_replicas", "ack_wait", "allow_msg_ttl")
_LAG = 1000  # messages; a copy that is further behind does not catch up by itself in a moment


def judge_streams(
    context: Context, settings: Settings, greetings: Sequence[Greeting], answers: Answers
) -> Iterator[Finding]:
    """Yield what is to be said of a server that lets this instance in.

    Args:
        context: what is looked at.
        settings: with the address of the server that is asked.
        greetings: of all servers that can be reached.
        answers: of JetStream.
    """
    yield _judge_version(greetings)
    yield _judge_payload(settings, greetings)
    if trouble := answers.trouble(INFO):
        yield error(
            "queue.jetstream",
            "JetStream",
            trouble if all(greeting.jetstream for greeting in greetings) else "JetStream is off",
            expected="JetStream, for the server and for this account",
            advice="put `jetstream {}` into the server's configuration, and turn it on for the account where there are "
            "accounts; a cluster needs more than half of its servers, and a moment after one is lost",
        )
        return
    yield ok("queue.jetstream", "JetStream", "answers")
    yield from _compare(settings, answers, is_running=context.instance.is_running)
    yield _judge_replicas(settings, greetings, answers)
    yield from judge_storage(settings, answers)
    yield from _judge_workers(answers)


def _judge_version(greetings: Sequence[Greeting]) -> Finding:
    part, least = "queue.version", ".".join(map(str, MIN_SERVER))
    found = sorted({greeting.version for greeting in greetings}, key=_numbers)
    if all(_numbers(version) >= MIN_SERVER for version in found):
        return ok(part, "nats-server", ", ".join(found))
    advice = f"upgrade the server to {least} or later"
    return error(part, "nats-server", ", ".join(found), expected=f"{least} or later", advice=advice)


def _numbers(version: str) -> tuple[int, ...]:
    """Read ``2.11.0-RC.1`` as ``(2, 11)``; what is no version comes before all others."""
    found = re.match(r"v?(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def _judge_payload(settings: Settings, greetings: Sequence[Greeting]) -> Finding:
    part, needed = "queue.payload", settings.max_body_bytes + PAYLOAD_MARGIN
    least = min(greeting.max_payload for greeting in greetings)
    if least >= needed:
        return ok(part, "max_payload", mebibytes(least))
    return warning(
        part,
        "max_payload",
        f"{mebibytes(least)}: larger requests are refused as tasks, with 413 task_too_large",
        expected=f"{mebibytes(needed)} or more, for MAX_BODY_BYTES of {mebibytes(settings.max_body_bytes)}",
        advice=f"set `max_payload: {needed}` or more in the server's configuration, or lower MAX_BODY_BYTES",
    )


def _compare(settings: Settings, answers: Answers, *, is_running: bool) -> Iterator[Finding]:
    part = "queue.streams"
    wanted = {str(config.name): config.as_dict() for config in stream_configs(settings)}
    questions = {name: stream_info(name) for name in STREAMS} | {CONSUMER: WORKERS}
    missing = [name for name, question in questions.items() if answers.trouble(question)]
    if missing:
        troubles = sorted({answers.trouble(questions[name]) for name in missing})
        is_told = all(answers.is_missing(questions[name]) for name in missing)
        judge = _judge_missing if is_told else _judge_silent
        yield judge(", ".join(missing), ", ".join(troubles), is_running=is_running)
    wanted[CONSUMER] = consumer_config(settings).as_dict()
    differ = list(
        chain.from_iterable(
            _differences(name, wanted[name], answers.of(question)["config"])
            for name, question in questions.items()
            if name not in missing
        )
    )
    yield from differ
    if not missing and not differ:
        yield ok(part, ", ".join(questions), "there, and as the settings say")


def _judge_silent(place: str, troubles: str, *, is_running: bool) -> Finding:
    del is_running  # they are there or not whoever runs
    return warning(
        "queue.streams",
        place,
        f"nothing is told of them: {troubles}",
        expected="an answer",
        advice="look again in a moment: a cluster that has lost a server finds new leaders; where it lasts, look at "
        "the servers' logs",
    )


def _judge_missing(place: str, troubles: str, *, is_running: bool) -> Finding:
    if not is_running:
        advice = "nothing to do: the service makes them when it connects"
        return note("queue.streams", place, f"not there ({troubles})", advice)
    return error(
        "queue.streams",
        place,
        f"not there ({troubles})",
        expected="streams and consumer, made by the service that runs",
        advice="look for `The queue cannot be reached` in its log; the account needs the right to make streams, and "
        "storage for their bounds",
    )


def _differences(name: str, wanted: dict[str, Any], found: dict[str, Any]) -> Iterator[Finding]:
    for key in _COMPARED:
        if key not in wanted or wanted[key] == found.get(key):
            continue
        setting = "NATS_REPLICAS" if key == "num_replicas" else _SETTINGS.get((name, key), "the settings")
        judge = error if key in _FIXED else warning
        yield judge(
            "queue.streams",
            f"{name} {key}",
            _text(key, found.get(key)),
            expected=f"{_text(key, wanted[key])} ({setting})",
            advice="set up by something else; give the service an account of its own"
            if key in _FIXED
            else "give API and workers the same TASK_* and NATS_REPLICAS and restart them, because the last to connect "
            "updates the stream; if it stays, `keeps its old settings` in their log gives the server's reason",
        )


def _text(key: str, value: Any) -> str:
    if key == "ack_wait" and isinstance(value, int):
        return f"{value / 1e9:g} s"
    if key == "max_bytes" and isinstance(value, int) and value > 0:
        return mebibytes(value)
    return "nothing" if value is None else str(value)


def _judge_replicas(settings: Settings, greetings: Sequence[Greeting], answers: Answers) -> Finding:
    part, wanted = "queue.replicas", settings.nats_replicas
    # Addresses that the servers tell, and those of the settings: one server may have several, none may be told.
    known = max(len(settings.nats_servers), *(len(greeting.connect_urls) for greeting in greetings), 1)
    servers = known if any(greeting.cluster for greeting in greetings) else 1
    place = f"NATS_REPLICAS={wanted}"
    if wanted > servers:
        return error(
            part,
            place,
            "one server, in no cluster" if servers == 1 else f"{servers} servers",
            expected=f"a cluster of at least {wanted} servers",
            advice=f"set NATS_REPLICAS={servers if servers % 2 else servers - 1}, or add servers (chart: "
            "`nats.replicas`, `externalNats.replicas`)",
        )
    bad = sorted(
        {
            str(peer.get("name"))
            for name in STREAMS
            for peer in answers.of(stream_info(name)).get("cluster", {}).get("replicas") or []
            if peer.get("offline") or peer.get("lag", 0) > _LAG
        }
    )
    if bad:
        return warning(
            part,
            place,
            f"copies on {', '.join(bad)} are offline or far behind",
            expected="all copies up to date",
            advice="bring these servers back, or look at their logs",
        )
    if wanted > 1 and not any(answers.of(stream_info(name)) for name in STREAMS):
        return skipped(part, place, "nothing is told of the copies")
    return ok(part, place, "no copies" if wanted == 1 else f"{wanted} copies, all there")


def _judge_workers(answers: Answers) -> Iterator[Finding]:
    part, state = "queue.workers", answers.of(WORKERS)
    if not state:
        return
    waiting, held, asking = state["num_pending"], state["num_ack_pending"], state["num_waiting"]
    found = f"{waiting} tasks wait, {held} are held by workers, {asking} requests for tasks"
    place = f"consumer {CONSUMER}"
    if asking or held:
        yield ok(part, place, found)
    elif waiting:
        yield error(
            part,
            place,
            found,
            expected="workers that ask for the tasks that wait",
            advice="start `facial-service worker` with the same NATS_URL (chart: `worker.enabled`, `worker.replicas`); "
            "see FacialServiceNoTaskWorkers",
        )
    else:
        yield note(part, place, found, "start `facial-service worker`, unless an autoscaler does when tasks come")
