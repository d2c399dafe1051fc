"""Photos sent to a service: several at a time over connections that are kept, each again until it has its answer.

What waiting can mend is waited for: a service that is full, that restarts, that a proxy cannot reach. A photo that gets
no answer while others get theirs is at fault itself; where none gets any for as long as we have patience, the run ends.
"""

from __future__ import annotations

import math
import queue
import random
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import httpx
import msgspec

from app import __version__
from app.cli.process.jobs import Fault, RunError
from app.cli.process.work import attempt, document_to_results, read_files, write_results
from app.service.options import OPTION_NAMES, CropOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.process.jobs import Job, Outcome, Recipe
    from app.cli.process.stop import Stop
    from app.cli.process.work import Files

PATH: Final = "/api/v1/frontal/crop"
BUSY: Final = frozenset({429, 503})
"""The service is there, and full: the photo's turn will come."""
AWAY: Final = frozenset({408, 502, 504})
"""Something between us did not reach it, or not in time."""
HOPELESS: Final = frozenset({401, 403, 404, 405})
"""As it answers this photo, it will answer all."""
PAUSE_S, PAUSE_MAX_S = 0.1, 5.0
LONGEST_RETRY_AFTER_S: Final = 300.0
PROBE_S: Final = 3.0
TICK_S: Final = 0.2
_TIMEOUT: Final = httpx.Timeout(120.0, connect=10.0)


class _Stopped(BaseException):
    """The photo is left, for the run stops."""


class _Problem(msgspec.Struct):
    """The part of a problem document that is told."""

    code: str
    detail: str


class RemotePool:
    """Has photos done by a service.

    Args:
        recipe: how.
        url: where the service is.
        key: its API key; empty for none.
        size: how many photos are in flight.
        patience_s: how long to wait for a service that does not answer, or is full.

    Raises:
        RunError: there can be no such URL.
    """

    def __init__(self, recipe: Recipe, *, url: str, key: str, size: int, patience_s: float) -> None:
        headers = {"Accept": "application/json", "User-Agent": f"facial-service/{__version__}"}
        if key:
            headers["X-API-Key"] = key
        self._recipe = recipe
        self._size = size
        self._patience_s = patience_s
        limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
        try:
            self._client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=_TIMEOUT, limits=limits)
        except httpx.InvalidURL:
            raise RunError("expected a URL such as http://127.0.0.1:8000, got something else") from None
        self._fields = write_options(recipe.options)
        self._lock = threading.Lock()
        self._outcomes: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._error: RunError | None = None
        self._last_answer = 0.0

    def run(self, jobs: Iterator[Job], stop: Stop) -> Iterator[Outcome]:
        """Do jobs, in any order, until there are no more or it is to stop; then those that were begun.

        Raises:
            RunError: the service is not there, does not let us in, or is no such service.
        """
        self._find(stop)
        threads = [threading.Thread(target=self._work, args=(jobs, stop), daemon=True) for _ in range(self._size)]
        for thread in threads:
            thread.start()
        left = len(threads)
        while left:
            with suppress(queue.Empty):
                # Not for ever: a signal is only looked at between two waits.
                outcome = self._outcomes.get(timeout=TICK_S)
                if outcome is None:
                    left -= 1
                else:
                    yield outcome
        self._client.close()
        if self._error is not None:
            raise self._error

    def _find(self, stop: Stop) -> None:
        """Wait a moment for the service: what is not there at the start is most likely somewhere else."""
        limit = time.monotonic() + min(self._patience_s, PROBE_S)
        while True:
            try:
                self._client.get("/version", timeout=min(PROBE_S, max(self._patience_s, TICK_S)))
            except (httpx.TransportError, UnicodeError) as error:  # the latter for a name that can be no host's
                if time.monotonic() >= limit or stop.wait(PAUSE_S):
                    raise RunError(f"no service answers there: {tell(error)}") from None
            else:
                self._last_answer = time.monotonic()
                return

    def _work(self, jobs: Iterator[Job], stop: Stop) -> None:
        """Do photos, one after the other, on a thread."""

        def do(job: Job) -> None:
            self._do(job, stop)

        try:
            while self._error is None and not stop.is_set():
                with self._lock:
                    job = next(jobs, None)
                if job is None:
                    return
                with suppress(_Stopped):
                    self._outcomes.put(attempt(job, do))
        finally:
            self._outcomes.put(None)

    def _do(self, job: Job, stop: Stop) -> None:
        files = read_files(job, self._recipe.max_bytes)
        document = self._ask(files, stop)
        try:
            results = document_to_results(document, files, self._recipe)
        except (msgspec.DecodeError, ValueError):
            raise Fault("answer_invalid", "the service answered with something that is no result") from None
        write_results(job, results)

    def _ask(self, files: Files, stop: Stop) -> bytes:
        """Send a photo until it is answered.

        Raises:
            Fault: the service refuses it, or does not answer it.
        """
        parts = [("image", files.image), ("landmarks", files.landmarks), ("segmentation_map", files.label_map)]
        form = {name: ("file", content) for name, content in parts if content is not None}
        lost_at, pause_s = math.inf, PAUSE_S
        while True:
            wait_s = 0.0
            try:
                answer = self._client.post(PATH, data=self._fields, files=form)
            except httpx.TransportError as error:
                fault = Fault("service_unreachable", f"the service does not answer: {tell(error)}")
                lost_at = min(lost_at, time.monotonic())
            else:
                if answer.status_code not in BUSY | AWAY:
                    return self._read(answer)
                fault, wait_s = read_fault(answer), read_retry_after(answer)
                if answer.status_code in AWAY:
                    lost_at = min(lost_at, time.monotonic())
            self._weigh(lost_at, fault)
            # Spread out, so that those who were turned away together do not come back together.
            wait_s = min(max(wait_s, pause_s) * random.uniform(1.0, 1.25), self._patience_s)  # noqa: S311
            if stop.wait(wait_s) or self._error is not None:
                raise _Stopped
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def _read(self, answer: httpx.Response) -> bytes:
        """Take a result out of an answer.

        Raises:
            Fault: it is none, for a reason that this photo has.
        """
        if answer.status_code != httpx.codes.OK:
            fault = read_fault(answer)
            if answer.status_code in HOPELESS or answer.is_redirect:
                hint = (
                    "; FACIAL_SERVICE_API_KEY is what is sent" if answer.status_code == httpx.codes.UNAUTHORIZED else ""
                )
                self._give_up(f"{answer.status_code} {fault.code}: {fault.reason}{hint}")
            self._last_answer = time.monotonic()
            raise fault
        self._last_answer = time.monotonic()
        return answer.content

    def _weigh(self, lost_at: float, fault: Fault) -> None:
        """Decide whether a photo is to be sent again.

        Args:
            lost_at: when it first got no answer from the service itself.
            fault: what it got last.

        Raises:
            Fault: others were answered since, and this one was not.
        """
        now = time.monotonic()
        if now - lost_at > self._patience_s and self._last_answer > lost_at:
            raise fault
        if now - self._last_answer > self._patience_s:
            self._give_up(f"nothing was done for {self._patience_s:g} s: {fault.reason}")

    def _give_up(self, reason: str) -> None:
        self._error = self._error or RunError(reason)
        raise _Stopped


def write_options(options: CropOptions) -> dict[str, str]:
    """Write options as fields of a form; those at their defaults are left out, which an older service may not know."""
    plain = CropOptions()
    changed = {name: getattr(options, name) for name in OPTION_NAMES if getattr(options, name) != getattr(plain, name)}
    return {name: _write_option(value) for name, value in changed.items()}


def _write_option(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_fault(answer: httpx.Response) -> Fault:
    """Read what a service says is wrong; of an answer that is no problem document, only its status."""
    try:
        problem = msgspec.json.decode(answer.content, type=_Problem)
    except msgspec.DecodeError:
        return Fault("http_error", f"expected a result, got status {answer.status_code}")
    return Fault(problem.code, problem.detail)


def read_retry_after(answer: httpx.Response) -> float:
    """Read how many seconds to wait; 0 where nothing is said that can be read."""
    text = answer.headers.get("Retry-After", "")
    return min(float(text), LONGEST_RETRY_AFTER_S) if text.isascii() and text.isdigit() else 0.0


def tell(error: Exception) -> str:
    """Say what went wrong on the way; some errors of the library have no text."""
    return str(error) or type(error).__name__
