"""Concurrent execution of the checks, each with a time limit and isolated from failures of the others."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from app.cli.doctor.catalogue import Check
from app.cli.doctor.context import Context, load_context
from app.cli.doctor.findings import Finding, error, invalid_value, skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from app.settings import InvalidSetting

TIMEOUT_S = 12.0
MODULES = {
    Check.SETTINGS: "check_settings",
    Check.PORTS: "check_service",
    Check.QUEUE: "check_queue",
    Check.MODELS: "check_installation",
    Check.METRIC_FILES: "check_resources",
    Check.LIMITS: "check_resources",
    Check.SERVICE: "check_service",
    Check.DISK: "check_resources",
    Check.PYTHON: "check_installation",
}
_SECRETS = ("API_KEYS", "NATS_PASSWORD", "NATS_TOKEN", "NATS_NKEY_SEED")
_MIN_SECRET_LENGTH = 4  # because shorter ones are part of many words, and redacting them would garble the report


def run_checks(
    checks: Iterable[Check], cgroup_root: Path, on_done: Callable[[Check], None] = lambda _: None
) -> list[Finding]:
    """Run checks at the same time, for at most `TIMEOUT_S` seconds, and call `on_done` after each.

    Return the findings in the order of `Check`, without secrets.
    """
    selected = sorted(set(checks), key=list(Check).index)
    context = load_context(cgroup_root)
    if not isinstance(context, Context):
        return [finding for check in selected for finding in _without_settings(check, context)]
    findings: dict[Check, list[Finding]] = {check: [] for check in selected}
    pool = ThreadPoolExecutor(len(selected), thread_name_prefix="doctor-check")
    running = {pool.submit(_run, check, context, findings[check]): check for check in selected}
    pool.shutdown(wait=False)
    with suppress(TimeoutError):
        for finished in as_completed(tuple(running), TIMEOUT_S):
            on_done(running.pop(finished))
    for check in running.values():
        findings[check].append(_failed(check, f"not finished within {TIMEOUT_S:g} s"))
    secrets = find_secrets(context.environment)
    return [redact(finding, secrets) for check in selected for finding in tuple(findings[check])]


def load_check(check: Check) -> Callable[[Context], Iterator[Finding]]:
    """Import the function of a check. A broken dependency then affects only the checks that import it."""
    module = importlib.import_module(f"app.cli.doctor.{MODULES[check]}")
    function: Callable[[Context], Iterator[Finding]] = getattr(module, f"check_{check.name.lower()}")
    return function


def _run(check: Check, context: Context, findings: list[Finding]) -> None:
    try:
        for finding in load_check(check)(context):
            findings.append(finding)  # noqa: PERF402 - keeps what was found before an exception
    except Exception as failure:  # noqa: BLE001 - isolates the other checks
        findings.append(_failed(check, f"failed ({_describe(failure)})"))


def _describe(failure: Exception) -> str:
    """Return the type and the location of an exception, but not its message, which may contain secrets."""
    trace = failure.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    location = f", {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(failure).__name__}{location}"


def _failed(check: Check, found: str) -> Finding:
    return error(f"{check}.check", "check", found, expected="a completed check")


def _without_settings(check: Check, invalid: tuple[InvalidSetting, ...]) -> Iterable[Finding]:
    if check is not Check.SETTINGS:
        yield skipped(f"{check}.check", "settings", "not run, because the settings are invalid")
        return
    yield from map(invalid_value, invalid)


def find_secrets(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys, passwords and tokens in the environment, also those in URLs, the longest first."""
    variables = {name.upper(): value for name, value in environment.items()}
    secrets = {variables.get(name, "").strip() for name in _SECRETS}
    secrets |= {key.strip() for key in variables.get("API_KEYS", "").split(",")}
    for server in variables.get("NATS_URL", "").split(","):
        before, sign, _ = server.rpartition("@")
        if sign:
            raw = before.partition("://")[2] or before
            parts = {raw, *raw.split(":", 1)}
            secrets |= parts | {unquote(part) for part in parts}
    return tuple(sorted((text for text in secrets if len(text) >= _MIN_SECRET_LENGTH), key=len, reverse=True))


def redact(finding: Finding, secrets: Iterable[str]) -> Finding:
    """Replace secrets in a finding, because messages of libraries and servers may contain them."""

    def clean(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "***")
        return text

    texts = finding.looked_at, finding.found, finding.expected, finding.advice
    return Finding(finding.name, finding.status, *map(clean, texts))
