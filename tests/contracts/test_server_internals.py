"""What `worker`, `protocol` and `closing` rely on of uvicorn and gunicorn, which neither of them documents."""

from __future__ import annotations

import inspect

import httptools
import pytest
from gunicorn.arbiter import Arbiter
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState


def source(thing: object) -> str:
    return inspect.getsource(thing)  # type: ignore[arg-type]


def test_server_stops_by_a_method_that_is_ours() -> None:
    assert list(inspect.signature(Server.shutdown).parameters) == ["self", "sockets"]
    assert "await self.shutdown(sockets=sockets)" in source(Server)
    assert {"connections", "tasks"} <= vars(ServerState()).keys()
    config = Config(app=lambda: None)
    assert {"should_exit", "config", "server_state"} <= vars(Server(config)).keys()
    assert "self.servers" in source(Server.startup)
    assert "self.lifespan" in source(Server)


def test_protocol_is_made_with_these_arguments() -> None:
    assert list(inspect.signature(HttpToolsProtocol).parameters)[:3] == ["config", "server_state", "app_state"]


@pytest.mark.parametrize("name", ["keep_alive", "response_started", "response_complete"])
def test_cycle_has(name: str) -> None:
    assert f"self.{name} = " in source(RequestResponseCycle.__init__)


def test_every_request_is_a_task_that_the_server_knows() -> None:
    assert "self.tasks.add(task)" in source(HttpToolsProtocol)
    assert "self.connections.discard(self)" in source(HttpToolsProtocol.connection_lost)


def test_cycle_closes_through_the_transport_of_the_protocol() -> None:
    assert "transport=self.transport" in source(HttpToolsProtocol.on_headers_complete)
    assert "self.transport.close()" in source(RequestResponseCycle.send)


def test_protocol_learns_of_the_end_of_each_response() -> None:
    assert "on_response=self.on_response_complete" in source(HttpToolsProtocol.on_headers_complete)
    assert "self.flow.resume_reading()" in source(HttpToolsProtocol.on_response_complete)
    assert "self.write_paused = True" in source(FlowControl.pause_writing)


def test_parser_reports_the_exception_of_a_callback() -> None:
    class Refusing:
        @staticmethod
        def on_headers_complete() -> None:
            raise LookupError

    with pytest.raises(httptools.HttpParserCallbackError) as caught:
        httptools.HttpRequestParser(Refusing()).feed_data(b"GET / HTTP/1.1\r\n\r\n")
    assert isinstance(caught.value.__context__, LookupError)


def test_master_closes_its_sockets_before_it_signals_the_workers() -> None:
    text = source(Arbiter.stop)
    assert text.index("close_sockets") < text.index("kill_workers")
    assert "time.time() + 2.0" in text, "what workers get after a second signal; see the times in worker.py"
