"""What a request says beside its body: the query, and the key that makes a submission safe to repeat."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from app.tasks.errors import TaskUnknownError
from app.web.problem_codes import ProblemError
from app.web.schemas import TASK_ID_PATTERN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import Request

MAX_WAIT_S = 60.0  # under the time that proxies commonly give an answer before they give up on it
MAX_KEY = 255
MAX_PARAMETERS = 100

_TASK_ID = re.compile(TASK_ID_PATTERN.strip("^$"))
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_BARE_KEY = re.compile(r"[!#-~][!-~]*")
# A string of RFC 8941, as the Idempotency-Key draft has it; spaces, which it allows, are in no key.
_QUOTED_KEY = re.compile(r'"((?:[!#-\[\]-~]|\\["\\])*)"')
_ESCAPE = re.compile(r'\\(["\\])')


def read_query(request: Request, names: Sequence[str]) -> dict[str, str]:
    """Read the query's parameters, each of a known name and given once.

    Raises:
        ProblemError: ``parameter_invalid``.
    """
    # Before it is parsed, which takes a microsecond for each.
    count = request.scope["query_string"].count(b"&") + 1
    if count > MAX_PARAMETERS:
        raise ProblemError("parameter_invalid", f"query: expected at most {MAX_PARAMETERS} parameters, got {count}")
    pairs = request.query_params.multi_items()
    found = dict(pairs)
    if unknown := found.keys() - set(names):
        expected = f"only {', '.join(names)}" if names else "none"
        raise ProblemError("parameter_invalid", f"query: expected {expected}; got {len(unknown)} of another name")
    if len(found) != len(pairs):
        raise ProblemError("parameter_invalid", "query: expected each parameter once, got one twice")
    return found


def read_wait_s(request: Request) -> float:
    """Read how long the caller is ready to wait, in seconds; 0 where nothing is said.

    Raises:
        ProblemError: ``parameter_invalid``.
    """
    text = read_query(request, ["wait"]).get("wait", "0")
    # float() reads more than numbers: nan, infinity, underscores, blanks around.
    wait_s = float(text) if _NUMBER.fullmatch(text) else -1.0
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise ProblemError("parameter_invalid", f"wait: expected seconds, 0 to {MAX_WAIT_S:g}, got something else")
    return wait_s


def require_task_id(text: str) -> None:
    """Refuse what has not the form of a task's id, as the id of a task that is not there.

    An id becomes part of names that the queue's server knows, in which dots and stars have a meaning.

    Raises:
        TaskUnknownError: it has another form.
    """
    if not _TASK_ID.fullmatch(text):
        raise TaskUnknownError("expected the id of a task, 32 hexadecimal digits, got something else")


def read_idempotency_key(request: Request) -> str | None:
    """Read the ``Idempotency-Key`` header: bare, or in double quotes as its draft standard has it.

    Both forms of a key are the same key.

    Raises:
        ProblemError: ``parameter_invalid``.
    """
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    if len(values) > 1:
        raise ProblemError("parameter_invalid", f"Idempotency-Key: expected one, got {len(values)}")
    (value,) = values
    if quoted := _QUOTED_KEY.fullmatch(value):
        key = _ESCAPE.sub(r"\1", quoted[1])
    else:
        key = value if _BARE_KEY.fullmatch(value) else ""
    if not 1 <= len(key) <= MAX_KEY:
        detail = f"Idempotency-Key: expected 1 to {MAX_KEY} visible ASCII characters, bare or in double quotes"
        raise ProblemError("parameter_invalid", f"{detail}; got something else")
    return key
