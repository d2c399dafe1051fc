"""Runs checks side by side, each bounded in time and none able to end the others."""

from __future__ import annotations

import importlib
import queue
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pydantic import ValidationError

from app.cli.doctor.context import Context, WrongSetting
from app.cli.doctor.findings import Finding, error, skipped
from app.cli.doctor.names import Check
from app.settings import Settings, load_settings, read_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

LIMIT_S = 12.0
_SECRETS = ("API_KEYS", "NATS_PASSWORD", "NATS_TOKEN", "NATS_NKEY_SEED")
_SHORTEST_SECRET = 4  # what is shorter stands in half of all words, and would blot them out
# These can be looked at whatever the settings are.
_ALWAYS = {Check.SETTINGS, Check.PYTHON}


def make_context(cgroup_root: Path) -> Context | tuple[WrongSetting, ...]:
    """Read the environment.

    Returns:
        What is to be looked at; or only what is wrong, where no default can stand for it.
    """
    environment, temporary = read_environment(), _find_temporary()
    try:
        return Context(load_settings(), environment, (), cgroup_root, temporary)
    except ValidationError as fault:
        problems = fault.errors(include_input=False, include_url=False)
    wrong = tuple(WrongSetting(".".join(map(str, one["loc"])).upper() or "settings", one["msg"]) for one in problems)
    fields = {str(problem["loc"][0]) for problem in problems if problem["loc"]}
    defaults: dict[str, Any] = {
        name: Settings.model_fields[name].get_default(call_default_factory=True) for name in fields
    }
    try:
        return Context(Settings(**defaults), environment, wrong, cgroup_root, temporary)
    except ValidationError as fault:  # of settings that contradict each other, nobody knows which is meant
        more = fault.errors(include_input=False, include_url=False)
        return wrong + tuple(WrongSetting("settings", one["msg"]) for one in more if not one["loc"] and not _has(wrong))


def _find_temporary() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        # Libraries ask for it when they are loaded, and checks that need no such folder would fail with them.
        tempfile.tempdir = "/"
        return None


def _has(wrong: tuple[WrongSetting, ...]) -> bool:
    return any(one.name == "settings" for one in wrong)


def run_checks(
    checks: Iterable[Check], cgroup_root: Path, on_done: Callable[[Check], None] = lambda _: None
) -> list[Finding]:
    """Run checks at the same time, for at most `LIMIT_S` seconds.

    Args:
        checks: which.
        cgroup_root: where control groups are mounted.
        on_done: told of each check that has ended.

    Returns:
        What they found, in the checks' own order; no secret stands in it.
    """
    chosen = sorted(set(checks), key=list(Check).index)
    context = make_context(cgroup_root)
    found: dict[Check, list[Finding]] = {check: [] for check in chosen}
    if not isinstance(context, Context):
        return [finding for check in chosen for finding in _without_settings(check, context)]
    ended: queue.SimpleQueue[Check] = queue.SimpleQueue()
    for check in chosen:
        threading.Thread(
            target=_run, args=(check, context, found[check], ended), name=f"doctor-{check}", daemon=True
        ).start()
    waiting, limit = set(chosen), time.monotonic() + LIMIT_S
    while waiting and (left := limit - time.monotonic()) > 0:
        try:
            check = ended.get(timeout=left)
        except queue.Empty:
            break
        waiting.discard(check)
        on_done(check)
    for check in waiting:
        found[check].append(_unfinished(check, f"it has not ended within {LIMIT_S:g} s"))
    secrets = find_secrets(context.environment)
    return [hide(finding, secrets) for check in chosen for finding in tuple(found[check])]


def _run(check: Check, context: Context, found: list[Finding], ended: queue.SimpleQueue[Check]) -> None:
    try:
        for finding in importlib.import_module(check.module).run(context):
            found.append(finding)  # noqa: PERF402 - what was found before a fault is kept
    except Exception as fault:  # noqa: BLE001 - whatever it is, the other checks go on
        found.append(_unfinished(check, f"it failed itself ({_describe(fault)})"))
    finally:
        ended.put(check)


def _describe(fault: Exception) -> str:
    """Name a fault by its type and its place; its text may hold what is nobody's business."""
    trace = fault.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f", {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(fault).__name__}{place}"


def _unfinished(check: Check, found: str) -> Finding:
    return error(
        f"{check}.check",
        "the check",
        found,
        expected="an end",
        advice=f"go on without it: --skip {check}; where the settings are right, report it as a defect",
    )


def _without_settings(check: Check, wrong: tuple[WrongSetting, ...]) -> Iterable[Finding]:
    if check is not Check.SETTINGS:
        yield skipped(f"{check}.check", "settings", "it needs settings that are right")
        return
    for one in wrong:
        yield error(
            "settings.values",
            one.name,
            "a value that is not taken",
            expected=one.message,
            advice="set these as expected, or unset them (chart: `settings`)",
        )


def find_secrets(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Collect what must not be told: keys, passwords, tokens, alone and in addresses; the longest first."""
    given = {name.upper(): value for name, value in environment.items()}
    secrets = {given.get(name, "").strip() for name in _SECRETS}
    secrets |= {key.strip() for key in given.get("API_KEYS", "").split(",")}
    for server in given.get("NATS_URL", "").split(","):
        before, sign, _ = server.rpartition("@")
        if sign:
            raw = before.partition("://")[2] or before
            parts = {raw, *raw.split(":", 1)}
            secrets |= parts | {unquote(part) for part in parts}
    return tuple(sorted((text for text in secrets if len(text) >= _SHORTEST_SECRET), key=len, reverse=True))


def hide(finding: Finding, secrets: Iterable[str]) -> Finding:
    """Blot secrets out of a finding: a last precaution, for what libraries and servers say is in it too."""

    def clean(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    return Finding(
        name=finding.name,
        status=finding.status,
        looked_at=clean(finding.looked_at),
        found=clean(finding.found),
        expected=clean(finding.expected),
        advice=clean(finding.advice),
    )
