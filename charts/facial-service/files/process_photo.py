"""Process the sample photo through the Service, at once and as a task, as a caller would; says what came of it."""

import base64
import json
import os
import sys
import time
from http import HTTPStatus
from importlib.resources import files
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

URL = os.environ["SERVICE_URL"] + "/api/v1/frontal/crop"
HAS_TASKS = os.environ["HAS_TASKS"] == "true"
LINES = [line for line in os.environ.get("API_KEYS", "").splitlines() if not line.lstrip().startswith("#")]
KEYS = [key.strip().partition(":")[2] or key.strip() for line in LINES for key in line.split(",") if key.strip()]
PATIENCE_S = 60.0  # what the release gets to answer, and the task to end
ANSWER_S = 30.0
PAUSE_S = 1.0
# In place of an answer, what the way to the service says of one that is not there (yet).
AWAY = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}

_opener = build_opener(ProxyHandler({}))  # the Service is inside; proxies are for what is outside


def call(path: str, body: bytes | None = None) -> tuple[int, Any]:
    """Send one request, again and again while nobody is there to answer.

    Returns:
        The status and the document of the answer.
    """
    headers = {"Content-Type": "application/json"} | ({"X-API-Key": KEYS[0]} if KEYS else {})
    request = Request(URL + path, data=body, headers=headers)  # noqa: S310 - the Service's address, from the chart
    limit = time.monotonic() + PATIENCE_S
    while True:
        try:
            with _opener.open(request, timeout=ANSWER_S) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            if error.status not in AWAY or time.monotonic() > limit:
                sys.exit(f"{request.get_method()} {request.full_url}: {error.status} {error.read().decode()}")
        except (URLError, TimeoutError, ConnectionError) as error:
            if time.monotonic() > limit:
                sys.exit(f"{request.get_method()} {request.full_url}: {error}")
        time.sleep(PAUSE_S)


def check(holds: bool, complaint: str) -> None:
    """End the test with a complaint unless something holds."""
    if not holds:
        sys.exit(complaint)


def process_at_once(sample: bytes) -> Any:
    """Send the photo and look at the answer.

    Returns:
        The result's document.
    """
    status, result = call("", sample)
    check(status == HTTPStatus.OK, f"expected 200, got {status}")
    overlay = base64.b64decode(result["svg"], validate=True)
    check(overlay.startswith(b"<svg"), f"expected an SVG, got {overlay[:40]!r}")
    check(bool(result["regions"]), "expected regions of the face, got none")
    say(f"at once: {len(result['regions'])} regions, {len(overlay)} bytes of SVG")
    return result


def process_as_task(sample: bytes, expected: Any) -> None:
    """Submit the photo, wait for the task, and compare its result with that of the request before."""
    status, task = call("/submit", sample)
    check(status == HTTPStatus.ACCEPTED, f"expected 202, got {status}")
    limit = time.monotonic() + PATIENCE_S
    while task["status"] in {"PENDING", "STARTED"}:
        check(time.monotonic() < limit, f"the task is {task['status']} after {PATIENCE_S:g} s; do workers run?")
        _, task = call(f"/status/{task['task_id']}?wait=10")
    check(task["status"] == "SUCCESS", f"expected SUCCESS, got {task['status']}: {task['error']}")
    check(task["result"]["regions"] == expected["regions"], "the task found other regions than the request")
    say(f"as a task: the same regions, in {task['processing_time_ms']:g} ms")


def say(line: str) -> None:
    """Write a line into the pod's log."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Run the test."""
    examples = json.loads((files("app.web") / "static" / "examples.json").read_bytes())
    sample = json.dumps(examples["catalogue"]["value"]).encode()
    result = process_at_once(sample)
    if HAS_TASKS:
        process_as_task(sample, result)


main()
