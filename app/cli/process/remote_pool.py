"""Process images on a running service: several requests at a time, each retried until it has a response.

Temporary failures are retried: the service is at capacity or restarting, or a proxy cannot reach it. An image fails if
it gets no response while others do. If no image gets a response within the stall timeout, the run ends.
"""

from __future__ import annotations

import math
import queue
import random
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import httpx
import msgspec

from app import __version__
from app.cli.process.jobs import JobError, RunError
from app.cli.process.processor import document_to_results, read_files, run_job, split_document, write_results
from app.service.options import OPTION_NAMES, CropOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.process.jobs import Job, JobConfig, Outcome
    from app.cli.process.processor import JobFiles

PATH: Final = "/api/v1/frontal/crop"
AT_CAPACITY: Final = frozenset({429, 503})
"""The service responds, but has no capacity now."""
UNREACHABLE: Final = frozenset({408, 502, 504})
"""The request did not reach the service, or not in time."""
FATAL: Final = frozenset({401, 403, 404, 405})
"""All other requests would get the same response."""
BACKOFF_S, BACKOFF_MAX_S = 0.1, 5.0
RETRY_AFTER_MAX_S: Final = 300.0
PROBE_TIMEOUT_S: Final = 3.0
POLL_S: Final = 0.2
MAX_PORT: Final = 65535
_TIMEOUT: Final = httpx.Timeout(120.0, connect=10.0)


class _RunStoppedError(BaseException):
    """The run stops before this image has a response."""


class _Problem(msgspec.Struct):
    """The reported part of a problem document."""

    code: str
    detail: str


class RemotePool:
    """Processes jobs on a service whose URL is valid for `is_service_url`; an empty API key means none."""

    def __init__(self, config: JobConfig, *, url: str, key: str, size: int, stall_timeout_s: float) -> None:
        headers = {"Accept": "application/json", "User-Agent": f"facial-service/{__version__}"}
        if key:
            headers["X-API-Key"] = key
        self._config = config
        self._size = size
        self._stall_timeout_s = stall_timeout_s
        limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
        self._client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=_TIMEOUT, limits=limits)
        self._fields = to_form_fields(config.options)
        self._jobs_lock = threading.Lock()
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._error: RunError | None = None
        self._last_response = 0.0

    def run(self, jobs: Iterator[Job], stop: threading.Event) -> Iterator[Outcome]:
        """Process jobs in any order; after a stop, finish only those whose request is in flight.

        Raises:
            RunError: the service is unreachable, refuses all requests, or is another service.
        """
        self._probe(stop)
        threads = [threading.Thread(target=self._send_jobs, args=(jobs, stop), daemon=True) for _ in range(self._size)]
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            with suppress(queue.Empty):
                # Use a timeout, because Python handles signals only between two waits.
                outcome = self._outcomes.get(timeout=POLL_S)
                if outcome is None:
                    running -= 1
                else:
                    yield outcome
        self._client.close()
        if self._error is not None:
            raise self._error

    def _probe(self, stop: threading.Event) -> None:
        """Check that the service is reachable, with a short timeout because a failure usually means a wrong URL."""
        deadline = time.monotonic() + min(self._stall_timeout_s, PROBE_TIMEOUT_S)
        while True:
            try:
                self._client.get("/version", timeout=min(PROBE_TIMEOUT_S, max(self._stall_timeout_s, POLL_S)))
            except (httpx.TransportError, UnicodeError) as error:  # UnicodeError: not a valid host name
                if time.monotonic() >= deadline or stop.wait(BACKOFF_S):
                    raise RunError(_unreachable(error)) from None
            else:
                self._last_response = time.monotonic()
                return

    def _send_jobs(self, jobs: Iterator[Job], stop: threading.Event) -> None:
        """Process jobs one after the other; the target of a thread."""
        try:
            while self._error is None and not stop.is_set():
                with self._jobs_lock:
                    job = next(jobs, None)
                if job is None:
                    return
                with suppress(_RunStoppedError):
                    self._outcomes.put(run_job(job, lambda job: self._process(job, stop)))
        finally:
            self._outcomes.put(None)

    def _process(self, job: Job, stop: threading.Event) -> int | None:
        files = read_files(job, self._config.max_bytes)
        document = self._request(files, stop)
        has_all_faces = self._config.options.face == "all"
        try:
            documents = split_document(document) if has_all_faces else [document]
            results = [document_to_results(one, self._config) for one in documents]
        except (msgspec.DecodeError, ValueError):
            raise JobError("answer_invalid", "service: expected a result document, got something else") from None
        return write_results(job, results, has_all_faces=has_all_faces)

    def _request(self, files: JobFiles, stop: threading.Event) -> bytes:
        """Send an image until there is a response, and return the result document."""
        parts = [("image", files.image), ("landmarks", files.landmarks), ("segmentation_map", files.label_map)]
        form = {name: ("file", content) for name, content in parts if content is not None}
        unreachable_since, backoff_s = math.inf, BACKOFF_S
        while True:
            retry_after_s = 0.0
            try:
                response = self._client.post(PATH, data=self._fields, files=form)
            except httpx.TransportError as exception:
                error = JobError("service_unreachable", _unreachable(exception))
                unreachable_since = min(unreachable_since, time.monotonic())
            else:
                if response.status_code not in AT_CAPACITY | UNREACHABLE:
                    return self._read_result(response)
                error, retry_after_s = _read_problem(response), _read_retry_after(response)
                if response.status_code in UNREACHABLE:
                    unreachable_since = min(unreachable_since, time.monotonic())
            self._check_stall(unreachable_since, error)
            # Add jitter, so that requests refused together are not repeated together.
            wait_s = min(max(retry_after_s, backoff_s) * random.uniform(1.0, 1.25), self._stall_timeout_s)  # noqa: S311
            if stop.wait(wait_s) or self._error is not None:
                raise _RunStoppedError
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    def _read_result(self, response: httpx.Response) -> bytes:
        """Return the result document of a response, or raise the error that it reports."""
        if response.status_code == httpx.codes.OK:
            self._last_response = time.monotonic()
            return response.content
        error = _read_problem(response)
        if response.status_code in FATAL or response.is_redirect:
            remedy = "; check FACIAL_SERVICE_API_KEY" if response.status_code == httpx.codes.UNAUTHORIZED else ""
            self._abort(f"{response.status_code} {error.code}: {error.reason}{remedy}")
        self._last_response = time.monotonic()
        raise error

    def _check_stall(self, unreachable_since: float, error: JobError) -> None:
        """Raise an error if this request alone, or every request, has failed for longer than the stall timeout.

        Its attempts have failed to reach the service since a time, which is infinite if the service has responded.
        """
        now = time.monotonic()
        if now - unreachable_since > self._stall_timeout_s and self._last_response > unreachable_since:
            raise error
        if now - self._last_response > self._stall_timeout_s:
            self._abort(f"no progress for {self._stall_timeout_s:g} s (--stall-timeout): {error.reason}")

    def _abort(self, reason: str) -> None:
        self._error = self._error or RunError(reason)
        raise _RunStoppedError


def is_service_url(text: str) -> bool:
    """Return whether a text is a service URL without credentials, which messages would reveal.

    Example:
        >>> is_service_url("https://faces.example.com/prefix"), is_service_url("http://user:password@host")
        (True, False)
    """
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    has_valid_port = url.port is None or 0 < url.port <= MAX_PORT
    return url.scheme in {"http", "https"} and bool(url.host) and not url.userinfo and has_valid_port


def to_form_fields(options: CropOptions) -> dict[str, str]:
    """Return the options as form fields, without defaults because an older service may not know newer options."""
    default = CropOptions()
    values = {name: getattr(options, name) for name in OPTION_NAMES if getattr(options, name) != getattr(default, name)}
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}


def _read_problem(response: httpx.Response) -> JobError:
    """Return the error in a problem document; without a document, only the status is known."""
    try:
        problem = msgspec.json.decode(response.content, type=_Problem)
    except msgspec.DecodeError:
        return JobError("http_error", f"service: expected a result, got status {response.status_code}")
    return JobError(problem.code, problem.detail)


def _read_retry_after(response: httpx.Response) -> float:
    """Return the seconds of the Retry-After header; 0 if it is missing or has another form."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), RETRY_AFTER_MAX_S) if text.isascii() and text.isdigit() else 0.0


def _unreachable(error: Exception) -> str:
    return f"service is unreachable: {str(error) or type(error).__name__}"
