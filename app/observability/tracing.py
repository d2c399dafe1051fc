"""Traces: spans of requests and tasks, exported with OpenTelemetry's SDK. The only module that imports it.

Traces are off unless a standard ``OTEL_*`` variable requests them (`is_requested`). Then, `start` creates a tracer and
an exporter in each worker process, after the fork. While traces are off, the SDK and its exporter are not imported, and
`span` returns a shared object that does nothing.

Attributes contain sizes, counts, codes and ids: never text from a caller, such as a path, a header or a file name.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import secrets
import threading
import time
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from app.observability import rich_logging
from app.observability.rich_logging import LogLimit, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from types import ModuleType, TracebackType

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanContext, SpanKind, Tracer

SERVICE: Final = "facial-service"
DESTINATION: Final = "tasks.facial_processing"  # the subject of tasks, without lane and task id
REMEDY: Final = "install facial-service[otel], or unset OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_EXPORTER"
LOG_PAUSE_S: Final = 60.0
_HEX: Final = 16
_RUN_BYTES: Final = 8

log = get_logger("server")


class _State(NamedTuple):
    """What a process needs to record spans."""

    tracer: Tracer
    provider: TracerProvider
    trace: ModuleType  # opentelemetry.trace
    attach: Callable[[Context], Any]
    detach: Callable[[Any], None]
    extract: Callable[[Mapping[str, str], Context], Context]
    inject: Callable[[dict[str, str]], None]
    new_context: Callable[[], Context]
    kinds: type[SpanKind]


_is_prepared = False
_state: _State | None = None
_NOTHING: Final[AbstractContextManager[None]] = contextlib.nullcontext()


def is_requested(environment: Mapping[str, str]) -> bool:
    """Return whether the environment requests traces, as the specification of OpenTelemetry defines its variables.

    Example:
        >>> is_requested({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
        True
        >>> is_requested({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"})
        False
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if exporter := environment.get("OTEL_TRACES_EXPORTER", "").strip():
        return exporter != "none"
    return bool(environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def find_problem(environment: Mapping[str, str]) -> str | None:
    """Return why requested traces cannot be exported, with the remedy; None if they can.

    Example:
        >>> find_problem({"OTEL_TRACES_EXPORTER": "zipkin"})
        'OTEL_TRACES_EXPORTER: expected otlp or none, got another value'
    """
    if environment.get("OTEL_TRACES_EXPORTER", "").strip() not in {"", "none", "otlp"}:
        return "OTEL_TRACES_EXPORTER: expected otlp or none, got another value"
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := environment.get(name, "").strip():
            if protocol != "http/protobuf":
                return f"{name}: expected http/protobuf, got another value"
            break
    modules = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
    if not all(map(_is_installed, modules)):
        return f"the extra otel is not installed; {REMEDY}"
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False


def prepare(environment: Mapping[str, str]) -> None:
    """Import OpenTelemetry if traces are requested, so that workers share the memory of its code.

    Traces that are requested but impossible are no reason not to serve, so they only cause a warning.
    """
    global _is_prepared  # noqa: PLW0603 - inherited by the workers
    if not is_requested(environment):
        return
    problem = find_problem(environment)
    if problem is None:
        _import_sdk()
        _is_prepared = True
    else:
        log.warning("Traces are off: %s", problem)


def _import_sdk() -> None:
    import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: PLC0415 - not imported while traces are off
    import opentelemetry.sdk.trace.export  # noqa: PLC0415
    import opentelemetry.trace.propagation.tracecontext  # noqa: F401, PLC0415

    # The exporter imports it when it is created, and each worker would need its own memory and time for that.
    importlib.import_module("requests")


def start(instance: str, version: str, on_drop: Callable[[str, int], None]) -> None:
    """Start to record and export spans in this process, unless traces are off.

    It must be called after the fork, because the exporter has a thread.

    Args:
        instance: name of the process in this instance, such as ``worker-0``.
        version: version of the service.
        on_drop: called with a reason and a number of spans that are not exported: ``queue_full`` or ``export_failed``.
    """
    global _state  # noqa: PLW0603 - a process has one tracer
    if not _is_prepared:
        return
    from opentelemetry import context, trace  # noqa: PLC0415 - see `_import_sdk`
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    _limit_sdk_logs()
    provider = TracerProvider(resource=_make_resource(instance, version), shutdown_on_exit=False)
    provider.add_span_processor(_make_processor(OTLPSpanExporter(), on_drop))
    # Set globally, so that spans of an operator's own code are exported, too.
    trace.set_tracer_provider(provider)
    propagator = TraceContextTextMapPropagator()
    _state = _State(
        tracer=provider.get_tracer(SERVICE, version),
        provider=provider,
        trace=trace,
        attach=context.attach,
        detach=context.detach,
        extract=propagator.extract,
        inject=propagator.inject,
        new_context=context.Context,
        kinds=trace.SpanKind,
    )


def _make_resource(instance: str, version: str) -> Any:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415 - see `_import_sdk`

    given = OTELResourceDetector().detect().attributes
    host = given.get("k8s.pod.name") or given.get("host.name") or uuid.uuid4().hex[:_HEX]
    own = {"service.name": SERVICE, "service.version": version, "service.instance.id": f"{host}/{instance}"}
    return Resource.create({**own, **given})


def _make_processor(exporter: Any, on_drop: Callable[[str, int], None]) -> Any:
    """Return a batch processor with a bounded queue that counts what it drops.

    The SDK's own processor also drops spans, but it logs each and exposes no number.
    """
    from opentelemetry.sdk.trace.export import (  # noqa: PLC0415 - see `_import_sdk`
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    lock = threading.Lock()
    pending = 0
    # The SDK's own reading of OTEL_BSP_MAX_QUEUE_SIZE.
    max_pending: int = BatchSpanProcessor._default_max_queue_size()  # type: ignore[no-untyped-call]  # noqa: SLF001

    class CountingExporter(SpanExporter):
        """Exporter that counts spans which the collector did not accept."""

        def export(self, spans: Sequence[Any]) -> SpanExportResult:
            nonlocal pending
            result = SpanExportResult.FAILURE
            try:
                result = SpanExportResult(exporter.export(spans))
            finally:
                with lock:
                    pending -= len(spans)
                if result is not SpanExportResult.SUCCESS:
                    on_drop("export_failed", len(spans))
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    class BoundedProcessor(BatchSpanProcessor):
        """Batch processor that drops new spans while its queue and the batch in flight are full."""

        def on_end(self, span: Any) -> None:
            nonlocal pending
            if not span.context.trace_flags.sampled:
                return
            with lock:
                is_full = pending >= max_pending
                pending += not is_full
            if is_full:
                on_drop("queue_full", 1)
            else:
                super().on_end(span)

    return BoundedProcessor(CountingExporter())


class _SdkLogs(logging.Handler):
    """Handler of the SDK's own log lines: one a minute, because it logs every failed export."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._limit = LogLimit(LOG_PAUSE_S)

    def emit(self, record: logging.LogRecord) -> None:
        if self._limit.is_due():
            log.warning("Traces: %s", record.getMessage())


def _limit_sdk_logs() -> None:
    logger = logging.getLogger("opentelemetry")
    logger.handlers = [_SdkLogs()]
    logger.propagate = False


def stop(limit_s: float) -> None:
    """Export the spans that have ended, within a limit, after which the process may exit."""
    if _state is None:
        return
    # On a thread, because an export that hangs cannot be interrupted. The caller then ends the process.
    flushing = threading.Thread(target=_state.provider.shutdown, daemon=True)
    flushing.start()
    flushing.join(limit_s)


def is_prepared() -> bool:
    """Return whether workers will record spans."""
    return _is_prepared


def is_enabled() -> bool:
    """Return whether this process records spans."""
    return _state is not None


def is_recording() -> bool:
    """Return whether the current request or attempt is sampled, so that its spans are recorded."""
    return _state is not None and bool(_state.trace.get_current_span().is_recording())


def span(
    name: str, kind: str = "INTERNAL", attributes: Mapping[str, str | int] | None = None
) -> AbstractContextManager[None]:
    """Record the block as a span of the current request or attempt; do nothing if that is not sampled.

    An exception sets the status of the span and ``error.type``.

    Example:
        >>> with span("svg"):
        ...     pass
    """
    if _state is None or not _state.trace.get_current_span().is_recording():
        return _NOTHING
    return _Scope(_state, _state.tracer.start_span(name, kind=_state.kinds[kind], attributes=attributes))


def span_around(name: str, inner: AbstractContextManager[None]) -> AbstractContextManager[None]:
    """Return a block that is a span and another context manager, such as a timer."""
    outer = span(name)
    return inner if outer is _NOTHING else _Both(outer, inner)


class _Both:
    """Two context managers as one; cheaper than an `ExitStack`."""

    def __init__(self, outer: AbstractContextManager[None], inner: AbstractContextManager[None]) -> None:
        self._outer, self._inner = outer, inner

    def __enter__(self) -> None:
        self._outer.__enter__()
        self._inner.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, traceback)
        self._outer.__exit__(kind, error, traceback)


class _Scope:
    """A span that is the current one within a block."""

    __slots__ = ("_span", "_state", "_token")

    def __init__(self, state: _State, recorded: Span) -> None:
        self._state = state
        self._span = recorded

    def __enter__(self) -> None:
        self._token = self._state.attach(self._state.trace.set_span_in_context(self._span))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._state.detach(self._token)
        if error is not None:
            _set_error(self._state, self._span, _code_of(error))
        self._span.end()


def _code_of(error: BaseException) -> str:
    """Return the public code of an error, or the name of its class; never its text, which may contain anything."""
    code = getattr(error, "code", None)
    return code if isinstance(code, str) else type(error).__name__


def _set_error(state: _State, failed: Span, code: str) -> None:
    failed.set_attribute("error.type", code)
    failed.set_status(state.trace.StatusCode.ERROR)


def set_error(code: str) -> None:
    """Mark the current attempt, or another span that is not a request, as failed."""
    if _state is not None:
        _set_error(_state, _state.trace.get_current_span(), code)


def end_wait(name: str, work: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that ends a span which begins now, then does the work: the time of waiting for a thread."""
    state = _state
    if state is None or not state.trace.get_current_span().is_recording():
        return work
    waiting = state.tracer.start_span(name)

    def run() -> Any:
        waiting.end()
        return work()

    return run


def inject() -> dict[str, str]:
    """Return the headers that continue the current trace in another process; none if traces are off."""
    headers: dict[str, str] = {}
    if _state is not None:
        _state.inject(headers)
    return headers


class RequestSpan:
    """The span of one HTTP request, which is the parent of all others in this process."""

    def __init__(self, state: _State, recorded: Span) -> None:
        self._state = state
        self._span = recorded
        self._token = state.attach(state.trace.set_span_in_context(recorded, state.new_context()))
        _set_log_ids(recorded.get_span_context())

    @property
    def traceparent(self) -> bytes:
        """The value of a ``traceparent`` header that identifies this span."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}".encode()

    def end(self, name: str, status: int, attributes: Mapping[str, str | int]) -> None:
        """End the span with the status of the response, or 0 if the client got none."""
        self._state.detach(self._token)
        recorded = self._span
        if recorded.is_recording():
            recorded.update_name(name)
            recorded.set_attributes(attributes)
            if status:
                recorded.set_attribute("http.response.status_code", status)
            if status == 0 or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                recorded.set_status(self._state.trace.StatusCode.ERROR)
        recorded.end()


def begin_request(
    method: str, headers: Sequence[tuple[bytes, bytes]], attributes: Mapping[str, str]
) -> RequestSpan | None:
    """Begin the span of a request, and set the ids of the log; None if traces are off.

    The method is a standard one or ``OTHER``. The trace is that of the caller's ``traceparent``, if there is one.
    """
    state = _state
    if state is None:
        return None
    given = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in _CONTEXT_HEADERS}
    parent = state.extract(given, state.new_context()) if given else state.new_context()
    known = {"http.request.method": "_OTHER" if method == "OTHER" else method, **attributes}
    started = state.tracer.start_span(_request_name(method, ""), parent, state.kinds.SERVER, known)
    return RequestSpan(state, started)


_CONTEXT_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})


def _request_name(method: str, route: str) -> str:
    return " ".join(filter(None, ("HTTP" if method == "OTHER" else method, route)))


def end_request(
    request: RequestSpan, method: str, route: str | None, status: int, *, code: str | None, body_bytes: int
) -> None:
    """End the span of a request. The route is a template, because a path may contain anything.

    The code of an error is an attribute. A status of 4xx is no error of the span, because the server has not failed.
    """
    attributes: dict[str, str | int] = {"http.request.body.size": body_bytes}
    if route:
        attributes |= {"http.route": route, "url.path": route}
    if code is not None:
        attributes["error.type"] = code
    request.end(_request_name(method, route or ""), status, attributes)


@contextlib.contextmanager
def refused_request(code: str, status: int) -> Iterator[None]:
    """Record a request that never reached the application, with the code of its problem; it took no time."""
    request = begin_request("OTHER", (), {})
    yield
    if request is not None:
        request.end(_request_name("OTHER", ""), status, {"error.type": code})


def _set_log_ids(context: SpanContext) -> None:
    rich_logging.trace_id.set(f"{context.trace_id:032x}")
    rich_logging.span_id.set(f"{context.span_id:016x}")


def attempt(headers: Mapping[str, str] | None, task_id: str, delivery: int) -> AbstractContextManager[None]:
    """Record the block as the processing of a task's message, as a child of the span that published it.

    A repeated delivery also links to that span; `link_attempt` adds the previous attempt if it is known.
    """
    state = _state
    if state is None:
        return _NOTHING
    parent = state.extract(headers or {}, state.new_context())
    creator = state.trace.get_current_span(parent).get_span_context()
    links = [state.trace.Link(creator)] if delivery > 1 and creator.is_valid else []
    attributes = messaging_attributes("process", task_id) | {"messaging.nats.message.delivery_count": delivery}
    started = state.tracer.start_span(f"process {DESTINATION}", parent, state.kinds.CONSUMER, attributes, links)
    _set_log_ids(started.get_span_context())
    return _Scope(state, started)


def messaging_attributes(operation: str, task_id: str) -> dict[str, str | int]:
    """Return the attributes of a span that publishes or processes a task's message."""
    return {
        "messaging.system": "nats",
        "messaging.destination.name": DESTINATION,
        "messaging.operation.name": operation,
        "messaging.operation.type": "send" if operation == "publish" else operation,
        "messaging.message.id": task_id,
    }


def publication(task_id: str) -> AbstractContextManager[None]:
    """Record the block as the publication of a task's message; `inject` inside it returns the message's headers."""
    if not is_recording() or _state is None:
        return _NOTHING
    attributes = messaging_attributes("publish", task_id)
    started = _state.tracer.start_span(f"publish {DESTINATION}", kind=_state.kinds.PRODUCER, attributes=attributes)
    return _Scope(_state, started)


def record_queue_wait(headers: Mapping[str, str] | None, submitted_at: float) -> None:
    """Record the time from the submission of a task until now, when its first attempt begins, in epoch seconds.

    The span is a sibling of the attempt. The clocks of two machines may differ, so it never ends before it starts.
    """
    state = _state
    if state is None or not state.trace.get_current_span().is_recording():
        return
    parent = state.extract(headers or {}, state.new_context())
    now_ns = time.time_ns()
    waited = state.tracer.start_span("queue wait", parent, start_time=min(int(submitted_at * 1e9), now_ns))
    waited.end(now_ns)


def make_run_id() -> str:
    """Return a new id of an attempt: 32 hexadecimal digits, beginning with the id of the current span if it is sampled.

    Another worker can thus link to the span of an attempt that it finds in a record.
    """
    if not is_recording() or _state is None:
        return uuid.uuid4().hex
    span_id = _state.trace.get_current_span().get_span_context().span_id
    return f"{span_id:016x}{secrets.token_hex(_RUN_BYTES)}"


def link_attempt(run: str) -> None:
    """Link the current attempt to an earlier one of the same task, by its `make_run_id`."""
    if not is_recording() or _state is None or not run:
        return
    current = _state.trace.get_current_span()
    own = current.get_span_context()
    span_id = int(run[:_HEX], 16)
    if span_id not in {0, own.span_id}:
        current.add_link(_state.trace.SpanContext(own.trace_id, span_id, is_remote=True, trace_flags=own.trace_flags))


def end_attempt(code: str, limit_s: float) -> None:
    """End the current attempt with an error and export it, because the process is about to exit."""
    if _state is not None:
        set_error(code)
        _state.trace.get_current_span().end()
        stop(limit_s)
