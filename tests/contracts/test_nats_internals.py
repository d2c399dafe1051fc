"""Internals of nats-py that `app/tasks/nats_client.py` relies on; an upgrade that changes one fails with a sentence.

Then read the new source, adapt `ServiceClient`, update the expectation here, and raise the upper bound of
nats-py in ``pyproject.toml``.
"""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import version
from pathlib import Path

import pytest
from nats.aio.client import Client

ROOT = Path(__file__).parents[2]
VERSION = version("nats-py")

# Overridden methods: signature, and fragments of the source that the override relies on.
OVERRIDDEN = {
    "_connect_to_server": (
        "(self, s: 'Srv') -> 'None'",
        ("if not self._transport:", "await self._transport.connect("),
        "it is called before each attempt to connect, and the override closes the previous transport first",
    ),
    "_flush_pending": (
        "(self, force_flush: 'bool' = False) -> 'Any'",
        ("self._transport.writelines(self._pending[:])", "await self._flush_queue.put(future)"),
        "it is the only method that writes to the socket on behalf of a caller, so uvloop's RuntimeError comes from it",
    ),
    "_connect_command": (
        "(self) -> 'bytes'",
        ('options["pass"]', "CONNECT_OP"),
        "its result contains the credentials, and the override raises an error if the connection is not encrypted",
    ),
}
# Private attributes: a method, a fragment of its source, and what the adapter relies on.
ATTRIBUTES = {
    "_transport": (
        "_close",
        "self._transport.close()",
        "it holds the socket, is None before the first attempt, and `close()` can be called repeatedly",
    ),
    "_resp_map": (
        "_request_new_style",
        "self._resp_map[token.decode()] = future",
        "it holds the future of each request in flight, and a request awaits its future",
    ),
    "_server_info": (
        "_process_connect_init",
        "self._server_info = srv_info",
        "it holds the INFO message of the server before the CONNECT command is built",
    ),
}


def source_of(name: str) -> str:
    """Return the source of a method of the installed client; empty if it is missing."""
    method = getattr(Client, name, None)
    return "" if method is None else inspect.getsource(method)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_method_is_as_expected(name: str) -> None:
    signature, fragments, reason = OVERRIDDEN[name]
    method = getattr(Client, name, None)
    assert method is not None, f"nats-py {VERSION} has no Client.{name}; ServiceClient relies on it: {reason}"
    found = str(inspect.signature(method))
    normalized = found.replace("'", "")
    assert normalized == signature.replace("'", ""), (
        f"nats-py {VERSION}: Client.{name} has the signature {found}, expected {signature}; it is overridden: {reason}"
    )
    missing = [fragment for fragment in fragments if fragment not in source_of(name)]
    assert not missing, f"nats-py {VERSION}: Client.{name} no longer contains {missing}; it is overridden: {reason}"


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_private_attribute_is_as_expected(name: str) -> None:
    method, fragment, reason = ATTRIBUTES[name]
    assert hasattr(Client(), name), (
        f"nats-py {VERSION}: Client has no attribute {name}; the adapter relies on it: {reason}"
    )
    assert fragment in source_of(method), (
        f"nats-py {VERSION}: Client.{method} no longer contains `{fragment}`; the adapter relies on it: {reason}"
    )


def test_credentials_are_sent_after_the_check() -> None:
    lines = source_of("_process_connect_init")
    info, command = lines.find("self._server_info = srv_info"), lines.find("self._connect_command()")
    first_write = lines.find("self._transport.write(")
    assert -1 < info < command < first_write, (
        f"nats-py {VERSION}: Client._process_connect_init no longer reads INFO, builds CONNECT and then writes, in "
        "this order; ServiceClient may send credentials without TLS"
    )


def test_no_other_module_uses_internals_of_the_client() -> None:
    private = {name for name in dir(Client()) if name.startswith("_") and not name.startswith("__")}
    for path in sorted((ROOT / "app").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name == "nats_client.py" or "nats" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and node.attr in private:
                is_own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
                assert is_own, f"{path.relative_to(ROOT)}:{node.lineno} uses {node.attr}; move it to nats_client.py"


def test_upper_bound_is_the_next_minor_version() -> None:
    major, minor = VERSION.split(".")[:2]
    bound = f"nats-py[nkeys]>={major}.{minor},<{major}.{int(minor) + 1}"
    assert bound in (ROOT / "pyproject.toml").read_text(encoding="utf-8"), (
        f"nats-py {VERSION} is installed, but pyproject.toml does not require {bound}"
    )
