"""Internals of gunicorn, uvicorn and uvicorn-worker that the supervisor relies on, although they are not documented.

The tables name each overridden method and each attribute that the adapter modules use. If an upgrade changes one of
them, the failure names the module that depends on it and the reason. Read the new source, adapt the adapter, then the
table.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httptools
import pytest

from app.supervisor import gunicorn_adapter, uvicorn_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator

APP = Path(__file__).parents[2] / "app"
ADAPTERS = {"gunicorn": gunicorn_adapter, "uvicorn": uvicorn_adapter, "uvicorn_worker": uvicorn_adapter}
# The public interfaces of the libraries, which other modules may use too.
PUBLIC = {"gunicorn.app.base", "gunicorn.config"}

ARBITER = "gunicorn.arbiter:Arbiter"
LOGGER = "gunicorn.glogging:Logger"
WORKER = "gunicorn.workers.base:Worker"
PROTOCOL = "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol"
CYCLE = "uvicorn.protocols.http.httptools_impl:RequestResponseCycle"
FLOW = "uvicorn.protocols.http.flow_control:FlowControl"
SERVER = "uvicorn.server:Server"
UVICORN_WORKER = "uvicorn_worker:UvicornWorker"


@dataclass(frozen=True)
class Method:
    """A method that an adapter overrides, or whose source it relies on.

    Attributes:
        path: module, class and method.
        reason: what the adapter relies on.
        parameters: names of the parameters after ``self``.
        source: fragments of the method's source, in their order.
    """

    path: str
    reason: str
    parameters: tuple[str, ...] = ()
    source: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attributes:
    """Attributes that an adapter uses.

    Attributes:
        path: module and class.
        reason: how the adapter uses them.
        names: attributes of the class, or set in one of its methods.
    """

    path: str
    reason: str
    names: tuple[str, ...]


METHODS = (
    # gunicorn
    Method(f"{ARBITER}.__init__", "the lists of sockets and workers are set on the instance before", ("app",)),
    Method(
        f"{ARBITER}.start",
        "sockets are bound when it returns, and the banner is printed at its end",
        source=("self.pid = os.getpid()", "self.LISTENERS = sock.create_sockets(", "self.cfg.when_ready(self)"),
    ),
    Method(
        f"{ARBITER}.run",
        "manage_workers runs about once a second, and StopIteration stops the instance in order",
        source=(
            "self.start()",
            "self.manage_workers()",
            "self.wait_for_signals(timeout=1.0)",
            '"handle_%s" % signame',
            "self.manage_workers()",
            "except (StopIteration, KeyboardInterrupt):",
            "self.halt()",
        ),
    ),
    Method(
        f"{ARBITER}.manage_workers",
        "starts missing workers",
        source=("len(self.WORKERS) < self.num_workers", "self.spawn_workers()"),
    ),
    Method(
        f"{ARBITER}.spawn_worker",
        "slots are assigned in pre_fork, and post_fork runs before the worker starts",
        source=(
            "self.worker_class(",
            "self.cfg.pre_fork(self, worker)",
            "os.fork()",
            "self.WORKERS[pid] = worker",
            "sibling.tmp.close()",
            "self.cfg.post_fork(self, worker)",
            "worker.init_process()",
        ),
    ),
    Method(f"{ARBITER}.handle_hup", "replaced: workers are reloaded one by one", source=("self.reload()",)),
    Method(f"{ARBITER}.handle_usr2", "replaced: the master must not re-execute", source=("self.reexec()",)),
    Method(
        f"{ARBITER}.reap_workers",
        "reaps every child and drops its status, so exit codes are peeked before",
        source=(
            "os.waitpid(-1, os.WNOHANG)",
            "exitcode == self.WORKER_BOOT_ERROR",
            "raise HaltServer(",
            "self.cfg.child_exit(self, worker)",
        ),
    ),
    Method(
        f"{ARBITER}.stop",
        "closes the master's sockets before it signals the workers, and gives them 2 s after a second signal, which "
        "the time limits in uvicorn_adapter respect",
        ("graceful",),
        (
            "sock.close_sockets(self.LISTENERS",
            "self.kill_workers(sig)",
            "self.SIG_QUEUE.get_nowait()",
            "self.kill_workers(signal.SIGQUIT)",
            "limit = time.time() + 2.0",
            "self.reap_workers()",
        ),
    ),
    Method(
        f"{ARBITER}.kill_workers", "SIGQUIT is the signal of a quick stop", ("sig",), ("self.kill_worker(pid, sig)",)
    ),
    Method(f"{ARBITER}.kill_worker", "signals one worker", ("pid", "sig"), ("os.kill(pid, sig)",)),
    Method(
        f"{ARBITER}.murder_workers",
        "marks workers that it ends because they sent no heartbeat",
        source=("worker.tmp.last_update()", "worker.aborted = True"),
    ),
    Method(
        f"{LOGGER}.setup",
        "replaced: sets handlers and whether requests are logged",
        ("cfg",),
        ("self.cfg = cfg", "self._access_log_enabled =", "self.error_log"),
    ),
    Method(
        f"{WORKER}.init_signals",
        "replaced: resets the signals, without handlers for those that the event loop handles",
        source=("for s in self.SIGNALS", "self.handle_usr1"),
    ),
    Method(f"{WORKER}.handle_usr1", "reopens log files", ("sig", "frame"), ("self.log.reopen_files()",)),
    Method(f"{WORKER}.notify", "updates the time that murder_workers reads", source=("self.tmp.notify()",)),
    Method(f"{WORKER}.run", "overridden by TaskWorker; init_process calls it at its end"),
    Method(
        f"{WORKER}.init_process",
        "installs the signal handlers, then loads the application, then runs",
        source=("self.init_signals()", "self.load_wsgi()", "self.run()"),
    ),
    Method(f"{WORKER}.load_wsgi", "sets the application", source=("self.wsgi = self.app.wsgi()",)),
    Method(
        "gunicorn.sock:BaseSocket.close",
        "closes the socket in one process, and leaves it open in others",
        source=("self.sock.close()",),
    ),
    Method(
        "gunicorn.sock:BaseSocket.bind", "binds a new socket to its address", ("sock",), ("sock.bind(self.cfg_addr)",)
    ),
    # uvicorn-worker
    Method(
        f"{UVICORN_WORKER}.__init__",
        "creates uvicorn's configuration and copies the log handlers",
        ("args", "kwargs"),
        (
            "logger.handlers = self.log.error_log.handlers",
            '"callback_notify": self.callback_notify',
            "config_kwargs.update(self.CONFIG_KWARGS)",
            "self.config = Config(",
        ),
    ),
    Method(
        f"{UVICORN_WORKER}.run", "runs _serve on uvicorn's event loop", source=("self._serve()", "get_loop_factory()")
    ),
    Method(
        f"{UVICORN_WORKER}._serve",
        "replaced: sets the application, serves, and reports a failed start",
        source=(
            "self.config.app = self.wsgi",
            "server.serve(sockets=self.sockets)",
            "if not server.started:",
            "sys.exit(Arbiter.WORKER_BOOT_ERROR)",
        ),
    ),
    Method(f"{UVICORN_WORKER}.callback_notify", "replaced: sends the heartbeat", source=("self.notify()",)),
    Method(
        f"{UVICORN_WORKER}.init_signals", "SlotWorker's method, which precedes it, does the same", source=("SIG_DFL",)
    ),
    # uvicorn's server
    Method(f"{SERVER}.__init__", "needs the configuration alone", ("config",), ("self.server_state = ServerState()",)),
    Method(f"{SERVER}.handle_exit", "handles SIGTERM", ("sig", "frame"), ("self.should_exit = True",)),
    Method(
        f"{SERVER}.shutdown", "replaced: every request gets a response", ("sockets",), ("self.lifespan.shutdown()",)
    ),
    Method(
        f"{SERVER}._serve",
        "shutdown is the last step, and is only called after a complete start",
        ("sockets",),
        ("self.lifespan = ", "self.startup(", "self.main_loop()", "if self.started", "self.shutdown(sockets=sockets)"),
    ),
    Method(
        f"{SERVER}.startup",
        "creates a server per socket, and the protocol with these arguments",
        ("sockets",),
        (
            "config=config",
            "server_state=self.server_state",
            "app_state=self.lifespan.state",
            "self.servers.append(server)",
            "self.started = True",
        ),
    ),
    Method(
        f"{SERVER}.on_tick",
        "calls the heartbeat at most once per timeout_notify",
        ("counter",),
        ("self.config.timeout_notify", "await self.config.callback_notify()", "if self.should_exit"),
    ),
    # uvicorn's protocol
    Method(
        f"{PROTOCOL}.__init__",
        "GracefulServer creates it with the first three arguments",
        ("config", "server_state", "app_state", "_loop"),
        ("set_dangerous_leniencies(lenient_data_after_close=True)",),
    ),
    Method(
        f"{PROTOCOL}.connection_made",
        "sets the transport and the flow control, which are then replaced",
        ("transport",),
        ("self.connections.add(self)", "self.transport = transport", "self.flow = FlowControl(transport)"),
    ),
    Method(
        f"{PROTOCOL}.connection_lost",
        "ends the request, and removes the connection from those that a shutdown waits for",
        ("exc",),
        ("self.connections.discard(self)", "self.cycle.disconnected = True", "self._unset_keepalive_if_required()"),
    ),
    Method(f"{PROTOCOL}.data_received", "replaced: limits are checked before the parser", ("data",)),
    Method(f"{PROTOCOL}.pause_writing", "pauses the response", source=("self.flow.pause_writing()",)),
    Method(f"{PROTOCOL}.resume_writing", "continues the response", source=("self.flow.resume_writing()",)),
    Method(
        f"{PROTOCOL}.on_message_begin",
        "resets what belongs to one request",
        source=('self.url = b""', "self.expect_100_continue = False", "self.headers = []", '"headers": self.headers'),
    ),
    Method(
        f"{PROTOCOL}.on_header",
        "adds a header in lower case",
        ("name", "value"),
        ("self.headers.append((name, value))",),
    ),
    Method(
        f"{PROTOCOL}.on_headers_complete",
        "starts the request from these attributes, and passes the replaced transport and flow control to it",
        source=(
            "httptools.parse_url(self.url)",
            "self.cycle = RequestResponseCycle(",
            "transport=self.transport",
            "flow=self.flow",
            "expect_100_continue=self.expect_100_continue",
            "on_response=self.on_response_complete",
            "self._start_asgi_task(self.cycle, app)",
        ),
    ),
    Method(
        f"{PROTOCOL}._start_asgi_task",
        "every request is a task that the server knows",
        ("cycle", "app"),
        ("task.add_done_callback(self.tasks.discard)", "self.tasks.add(task)"),
    ),
    Method(f"{PROTOCOL}.on_message_complete", "ends the body", source=("self.cycle.more_body = False",)),
    Method(
        f"{PROTOCOL}.on_response_complete",
        "runs after each response, resumes reading and starts the keep-alive timer",
        source=("self.flow.resume_reading()", "self.timeout_keep_alive_task = self.loop.call_later("),
    ),
    Method(f"{PROTOCOL}.shutdown", "replaced: idle connections may send one more request"),
    Method(
        f"{PROTOCOL}._unset_keepalive_if_required",
        "stops the keep-alive timer",
        source=("self.timeout_keep_alive_task.cancel()",),
    ),
    Method(f"{PROTOCOL}.timeout_keep_alive_handler", "closes an idle connection", source=("self.transport.close()",)),
    Method(
        f"{CYCLE}.send",
        "writes to and closes the transport of the protocol, and then reports the end of the response",
        ("message",),
        (
            "self.flow.write_paused",
            "await self.flow.drain()",
            "self.response_started = True",
            "self.response_complete = True",
            "if not self.keep_alive:",
            "self.transport.close()",
            "self.on_response()",
        ),
    ),
    Method(f"{FLOW}.__init__", "needs the transport alone", ("transport",)),
    Method(f"{FLOW}.resume_reading", "overridden: reading stays paused while many bytes are unread"),
    Method(f"{FLOW}.pause_reading", "pauses reading", source=("self.read_paused = True",)),
    Method(f"{FLOW}.pause_writing", "the protocol reads no further request then", source=("self.write_paused = True",)),
)

ATTRIBUTES = (
    Attributes(
        ARBITER, "set per instance, because the class shares them with a forked master", ("LISTENERS", "WORKERS")
    ),
    Attributes(ARBITER, "state of the master", ("SIG_QUEUE", "num_workers", "pid", "systemd")),
    Attributes(ARBITER, "exit status with which a worker stops the master", ("WORKER_BOOT_ERROR",)),
    Attributes(LOGGER, "handlers are replaced, and the access log is off", ("cfg", "error_log", "_access_log_enabled")),
    Attributes(WORKER, "signals to reset", ("SIGNALS",)),
    Attributes(WORKER, "state of a worker", ("pid", "sockets", "tmp", "aborted", "wsgi")),
    Attributes("gunicorn.sock:BaseSocket", "the socket itself and its configured address", ("sock", "cfg_addr")),
    Attributes(UVICORN_WORKER, "options of the server", ("CONFIG_KWARGS", "config")),
    Attributes(
        SERVER, "state of the server", ("config", "lifespan", "server_state", "servers", "should_exit", "started")
    ),
    Attributes("uvicorn.server:ServerState", "requests that a shutdown waits for", ("connections", "tasks")),
    Attributes("uvicorn.config:Config", "interval of the heartbeat, and the protocol", ("http", "timeout_notify")),
    Attributes(PROTOCOL, "connection", ("client", "flow", "loop", "transport")),
    Attributes(PROTOCOL, "request", ("cycle", "expect_100_continue", "headers", "parser", "url")),
    Attributes(PROTOCOL, "keep-alive timer", ("timeout_keep_alive", "timeout_keep_alive_task")),
    Attributes(CYCLE, "state of a request", ("keep_alive", "response_complete", "response_started", "scope")),
    Attributes(FLOW, "whether the response is paused", ("write_paused",)),
)


def resolve(path: str) -> Any:
    module, _, name = path.partition(":")
    return attrgetter(name)(importlib.import_module(module))


def library(path: str) -> str:
    """Return the library of a path with its version."""
    package = path.partition(":")[0].partition(".")[0]
    return f"{package} {importlib.metadata.version(package)}"


def adapter(path: str) -> str:
    return ADAPTERS[path.partition(":")[0].partition(".")[0]].__name__


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.path.partition(":")[2])
def test_method_is_as_expected(method: Method) -> None:
    where = f"{method.path} of {library(method.path)}"
    because = f"{adapter(method.path)} relies on this: {method.reason}"
    try:
        function = resolve(method.path)
    except (ImportError, AttributeError):
        pytest.fail(f"{where}: expected to exist, was removed or moved; {because}")
    parameters = tuple(inspect.signature(function).parameters)[1:]
    assert parameters == method.parameters, f"{where}: expected other parameters; {because}"
    source, at = inspect.getsource(function), 0
    for fragment in method.source:
        found = source.find(fragment, at)
        assert found >= 0, f"{where}: expected `{fragment}` in its source, after the fragments before it; {because}"
        at = found + len(fragment)


@pytest.mark.parametrize("attributes", ATTRIBUTES, ids=lambda item: f"{item.path.partition(':')[2]}-{item.names[0]}")
def test_attributes_exist(attributes: Attributes) -> None:
    owner = resolve(attributes.path)
    known = {name for base in owner.__mro__ for name in vars(base)}
    known |= {target.attr for base in owner.__mro__[:-1] for target in assigned_attributes(base)}
    missing = set(attributes.names) - known
    where = f"{attributes.path} of {library(attributes.path)}"
    because = f"{adapter(attributes.path)} relies on this: {attributes.reason}"
    assert not missing, f"{where}: expected the attributes {sorted(missing)}, which were removed or renamed; {because}"


def test_names_outside_of_classes_exist() -> None:
    assert gunicorn_adapter.BOOT_ERROR not in {0, 1}, "a worker that fails after its start must not stop the master"
    assert uvicorn_adapter.STATUS_LINE[503] == b"HTTP/1.1 503 Service Unavailable\r\n", "written before our own headers"
    assert uvicorn_adapter.HIGH_WATER_LIMIT == 65_536, "unread bytes from which the adapter pauses reading"


def test_parser_reports_the_exception_of_a_callback() -> None:
    class Refusing:
        @staticmethod
        def on_headers_complete() -> None:
            raise LookupError

    with pytest.raises(httptools.HttpParserCallbackError) as caught:
        httptools.HttpRequestParser(Refusing()).feed_data(b"GET / HTTP/1.1\r\n\r\n")
    assert isinstance(caught.value.__context__, LookupError)


def test_every_overridden_method_is_listed() -> None:
    listed = {resolve(method.path) for method in METHODS}
    for own in adapted_classes():
        for name, member in vars(own).items():
            base = next((cls for cls in own.__mro__[1:] if is_foreign(cls) and name in vars(cls)), None)
            if base is not None and inspect.isfunction(member):
                override = f"{own.__name__}.{name} overrides the method of {base.__module__}:{base.__name__}"
                assert vars(base)[name] in listed, f"{override}: add it to METHODS with the reason"


def test_every_attribute_is_listed() -> None:
    listed = {name for item in ATTRIBUTES for name in item.names}
    listed |= {method.path.rpartition(".")[2] for method in METHODS}
    for own in adapted_classes():
        known = set(listed)
        for cls in own.__mro__:
            if not is_foreign(cls):
                known |= {*vars(cls), *inspect.get_annotations(cls)} | {node.attr for node in assigned_attributes(cls)}
        unlisted = {node.attr for node in self_attributes(own)} - known
        assert not unlisted, f"{own.__name__} uses the attributes {sorted(unlisted)}: add them to ATTRIBUTES"


def test_only_the_adapters_use_the_libraries() -> None:
    for path in sorted(APP.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                module = ADAPTERS.get(name.partition(".")[0])
                is_allowed = module is None or name in PUBLIC or path == Path(str(module.__file__))
                assert is_allowed, f"{path}: expected no import of {name}; only {module and module.__name__} may"


def adapted_classes() -> Iterator[type]:
    """Yield the classes of the adapters that extend a class of the libraries."""
    for module in {*ADAPTERS.values()}:
        for own in vars(module).values():
            if inspect.isclass(own) and own.__module__ == module.__name__ and any(map(is_foreign, own.__mro__)):
                yield own


def is_foreign(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ADAPTERS


def self_attributes(cls: type) -> Iterator[ast.Attribute]:
    if cls.__module__ == "builtins":
        return
    for node in ast.walk(ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls)))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node


def assigned_attributes(cls: type) -> Iterator[ast.Attribute]:
    return (node for node in self_attributes(cls) if isinstance(node.ctx, ast.Store))
