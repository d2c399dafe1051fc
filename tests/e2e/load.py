"""Script for a pod: call the service without a pause, and print totals as a JSON line each second.

Arguments: the service's address; `sync`, `tasks`, or `big` for one task of 300 MB per caller; the number of callers;
the query string. It ends when /tmp/stop exists and every accepted task has ended.

Totals: `answered` and `accepted` are successes; `failed` are requests and tasks that failed or were lost; `wrong` are
results other than the first one; `duplicated` are tasks that ended more than once; `unconnected` are attempts for which
no connection could be opened; `retried` are repetitions, `retries` the reasons of the first ones; `slowest_s` is the
longest time until a success.
"""

import base64
import hashlib
import http.client
import importlib.resources
import json
import struct
import sys
import threading
import time
import urllib.parse
import uuid
import zlib
from pathlib import Path
from typing import Any

address, mode, callers, query = urllib.parse.urlsplit(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
CROP = "/api/v1/frontal/crop"
RETRIED = {502, 503, 504}
END_S = 300
PAUSE_S = 0.2  # before a repetition
SUBMIT_S = 0.1  # between the tasks of a caller: at the end, each of them is read again
RESPONSE_S = 30  # a node that is lost sends nothing, not even the end of a connection
STOP = Path("/tmp/stop")
lock = threading.Lock()
results: dict[str, bytes] = {}
account: dict[str, Any] = {
    "answered": 0,
    "failed": 0,
    "wrong": 0,
    "duplicated": 0,
    "unconnected": 0,
    "retried": 0,
    "reconnected": 0,
    "accepted": 0,
    "ended": {},
    "slowest_s": 0.0,
    "failures": [],
    "retries": [],
}


def sample() -> bytes:
    """Return the example request of the package: an image and its landmarks."""
    text = importlib.resources.files("app.web").joinpath("static/examples.json").read_text("utf-8")
    return json.dumps(json.loads(text)["catalogue"]["value"]).encode()


def large() -> bytes:
    """Return the same landmarks with an empty image of 24 million pixels, which the service decodes."""
    request = json.loads(sample())
    side = 4800
    rows = zlib.compress(bytes(side * (1 + 3 * side)), 1)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    image = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return json.dumps({**request, "image": base64.b64encode(image).decode(), "verify": "pixels"}).encode()


class UnconnectedError(Exception):
    """No connection to the service could be opened, so the request was not sent."""


class Caller:
    """A client that keeps its connection, or opens a new one for each request.

    If the server has closed the kept connection, the client sends the request again on a new one, as HTTP clients do.
    """

    def __init__(self, is_kept: bool) -> None:
        self._is_kept = is_kept
        self._connection: http.client.HTTPConnection | None = None

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send a request; return status and body."""
        is_reused = self._connection is not None
        try:
            return self._send(method, path, body, headers or {})
        except (http.client.RemoteDisconnected, ConnectionError):
            self._hang_up()
            if not is_reused:
                raise
            note("reconnected")
            return self._send(method, path, body, headers or {})
        except (OSError, http.client.HTTPException):
            self._hang_up()
            raise

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        if self._connection is None:
            connection = http.client.HTTPConnection(address.hostname or "", address.port or 80, timeout=RESPONSE_S)
            try:
                connection.connect()
            except OSError as error:
                raise UnconnectedError(f"{type(error).__name__}: {error}") from None
            self._connection = connection
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if "X-Request-ID" not in answer.headers:  # the address of a Service that was deleted may lead to another server
            self._hang_up()
            raise UnconnectedError(f"{answer.status} of another server")
        if not self._is_kept:
            self._hang_up()
        return answer.status, text

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def note(key: str) -> None:
    """Increase a counter."""
    with lock:
        account[key] += 1


def retry(why: str) -> None:
    """Count a repetition, keep the first reasons, and pause."""
    with lock:
        account["retried"] += 1
        account["retries"] = [*account["retries"], why][:10]
    time.sleep(PAUSE_S)


def fail(why: str) -> None:
    """Count a failure, and keep the first ones."""
    with lock:
        account["failed"] += 1
        account["failures"] = [*account["failures"], why][:10]


def compare(result: dict[str, Any]) -> None:
    """Count a result that differs from the first one."""
    content = {key: value for key, value in result.items() if key != "processing_time_ms"}
    if results.setdefault("first", digest(content)) != digest(content):
        note("wrong")


def digest(document: dict[str, Any]) -> bytes:
    """Return the hash of a document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()


def measure(start: float) -> None:
    """Keep the longest time until a success."""
    with lock:
        account["slowest_s"] = max(account["slowest_s"], round(time.monotonic() - start, 1))


def send_sync(body: bytes, caller: Caller) -> None:
    """Call the synchronous route until /tmp/stop exists.

    Only requests that were not sent, or that were rejected at capacity, are repeated.
    """
    start = time.monotonic()
    while not STOP.exists():
        try:
            status, text = caller.call("POST", f"{CROP}?{query}", body, {"Content-Type": "application/json"})
        except UnconnectedError:
            note("unconnected")
            time.sleep(PAUSE_S)
            continue
        except (OSError, http.client.HTTPException) as error:
            fail(f"{type(error).__name__}: {error}")
            status, text = 0, b""
        if status == 200:
            note("answered")
            measure(start)
            compare(json.loads(text))
        elif status == 503 and b"saturated" in text:
            retry(f"{status} {text[:200]!r}")
            continue
        elif status:
            fail(f"{status} {text[:200]!r}")
        start = time.monotonic()


def send_tasks(body: bytes, caller: Caller) -> None:
    """Submit tasks until /tmp/stop exists, then wait for each to end; repeat requests where that is safe."""
    places: list[str] = []
    ended: dict[str, bytes] = {}
    while not STOP.exists():
        key = uuid.uuid4().hex
        place = submit(caller, body, key)
        if place is None:
            fail("never accepted")
            continue
        note("accepted")
        note("answered")
        places.append(place)
        while len(places) > 50:
            finish(caller, places.pop(0), ended)
        time.sleep(SUBMIT_S)
    for place in places:
        finish(caller, place, ended)
    for place, document in ended.items():
        if digest(read(caller, place, time.monotonic() + END_S) or {}) != document:
            note("duplicated")


def send_one(body: bytes, caller: Caller) -> None:
    """Submit one task, and wait for it to end."""
    place = submit(caller, body, uuid.uuid4().hex)
    if place is None:
        fail("never accepted")
        return
    note("accepted")
    note("answered")
    finish(caller, place, {})


def submit(caller: Caller, body: bytes, key: str) -> str | None:
    """Submit one task repeatedly under one key until it is accepted."""
    start = time.monotonic()
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    while time.monotonic() < start + END_S:
        try:
            status, text = caller.call("POST", f"{CROP}/submit?{query}", body, headers)
        except UnconnectedError as error:
            note("unconnected")
            status, text = 0, str(error).encode()
        except (OSError, http.client.HTTPException) as error:
            status, text = 0, f"{type(error).__name__}: {error}".encode()
        if status == 202:
            measure(start)
            return str(json.loads(text)["task_id"])
        if status and status not in RETRIED:
            fail(f"submit {status} {text[:200]!r}")
        retry(f"{status} {text[:200]!r}")
    return None


def finish(caller: Caller, place: str, ended: dict[str, bytes]) -> None:
    """Wait for a task to end, and keep the hash of its document."""
    end = time.monotonic() + END_S
    while time.monotonic() < end:
        document = read(caller, place, end, wait=True)
        if document is None:
            return
        if document["status"] in {"SUCCESS", "FAILURE", "CANCELLED"}:
            ended[place] = digest(document)
            with lock:
                states = account["ended"]
                states[document["status"]] = states.get(document["status"], 0) + 1
            if document["status"] == "SUCCESS":
                compare(document["result"])
            elif document["status"] == "FAILURE":
                with lock:
                    account["failures"] = [*account["failures"], document["error"]["code"]][:10]
            return
    fail(f"never ended {place}")


def read(caller: Caller, place: str, end: float, *, wait: bool = False) -> dict[str, Any] | None:
    """Return the document of a task; repeat the request until there is a response, and count a lost task."""
    while time.monotonic() < end:
        try:
            status, text = caller.call("GET", f"{CROP}/status/{place}{'?wait=5' if wait else ''}")
        except (OSError, http.client.HTTPException, UnconnectedError):
            status, text = 0, b""
        if status == 200:
            document: dict[str, Any] = json.loads(text)
            return document
        if status == 404:
            fail(f"lost {place}")
            return None
        time.sleep(PAUSE_S)
    fail(f"no status {place}")
    return None


def main() -> None:
    """Run the callers, and print the totals."""
    body = large() if mode == "big" else sample()
    work = {"sync": send_sync, "tasks": send_tasks, "big": send_one}[mode]
    threads = [threading.Thread(target=work, args=(body, Caller(number % 2 == 1))) for number in range(callers)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        with lock:
            print(json.dumps(account), flush=True)
    with lock:
        print(json.dumps(account), flush=True)


main()
