"""Send the sample image through the Service, as a request and as a task, and check the results."""

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
DEADLINE_S = 60.0  # for the release to respond, and for the task to complete
REQUEST_TIMEOUT_S = 30.0
RETRY_DELAY_S = 1.0
# Responses of proxies while the service is not reachable yet.
RETRY_STATUSES = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}

_opener = build_opener(ProxyHandler({}))  # the Service is inside the cluster, so proxies do not apply


def call(path: str, body: bytes | None = None) -> tuple[int, Any]:
    """Send one request, and retry while the service is unreachable.

    Returns:
        The status and the JSON document of the response.
    """
    headers = {"Content-Type": "application/json"} | ({"X-API-Key": KEYS[0]} if KEYS else {})
    request = Request(URL + path, data=body, headers=headers)  # noqa: S310 - the Service's address, from the chart
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            with _opener.open(request, timeout=REQUEST_TIMEOUT_S) as response:
                return response.status, json.load(response)
        except HTTPError as error:
            if error.status not in RETRY_STATUSES or time.monotonic() > deadline:
                sys.exit(f"{request.get_method()} {request.full_url}: {error.status} {error.read().decode()}")
        except (URLError, TimeoutError, ConnectionError) as error:
            if time.monotonic() > deadline:
                sys.exit(f"{request.get_method()} {request.full_url}: {error}")
        time.sleep(RETRY_DELAY_S)


def check(condition: bool, message: str) -> None:
    """Fail the test with a message if a condition is false."""
    if not condition:
        sys.exit(message)


def check_request(sample: bytes) -> Any:
    """Send the image and check the response.

    Returns:
        The JSON document of the result.
    """
    status, result = call("", sample)
    check(status == HTTPStatus.OK, f"expected 200, got {status}")
    overlay = base64.b64decode(result["svg"], validate=True)
    check(overlay.startswith(b"<svg"), f"expected an SVG, got {overlay[:40]!r}")
    check(bool(result["regions"]), "expected face regions, got none")
    log(f"request: {len(result['regions'])} regions, {len(overlay)} bytes of SVG")
    return result


def check_task(sample: bytes, expected: Any) -> None:
    """Submit the image as a task, wait for the task, and compare its result with that of the request."""
    status, task = call("/submit", sample)
    check(status == HTTPStatus.ACCEPTED, f"expected 202, got {status}")
    deadline = time.monotonic() + DEADLINE_S
    while task["status"] in {"PENDING", "STARTED"}:
        check(time.monotonic() < deadline, f"task is still {task['status']} after {DEADLINE_S:g} s; check the workers")
        _, task = call(f"/status/{task['task_id']}?wait=10")
    check(task["status"] == "SUCCESS", f"expected SUCCESS, got {task['status']}: {task['error']}")
    check(task["result"]["regions"] == expected["regions"], "expected the regions of the request, got other regions")
    log(f"task: the same regions, in {task['processing_time_ms']:g} ms")


def log(line: str) -> None:
    """Write a line to the pod's log."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Run the test."""
    examples = json.loads((files("app.web") / "static" / "examples.json").read_bytes())
    sample = json.dumps(examples["catalogue"]["value"]).encode()
    result = check_request(sample)
    if HAS_TASKS:
        check_task(sample, result)


main()
