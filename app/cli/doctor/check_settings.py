"""Settings: wrong values, misspelt names, doubtful combinations."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from app.cli.doctor.combinations import find_doubts
from app.cli.doctor.findings import Finding, error, note, ok, warning
from app.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.doctor.context import Context

NAMES = {name.upper() for name in Settings.model_fields}
# What differs more is somebody else's: at 0.85 one letter in seven is another, missing or too many.
CLOSE = 0.85
# HOST and PORT are too short to tell a slip from a name of somebody else's.
SHORTEST = 6
# What people put before names so that these are theirs; here they are taken as they are.
PREFIXES = ("FACIAL_SERVICE_", "FACIAL_")


def run(context: Context) -> Iterator[Finding]:
    """Look at the environment."""
    yield from _find_wrong(context)
    yield from _find_misspelt(context)
    doubts = list(find_doubts(context))
    yield from doubts
    if not doubts:
        yield ok("settings.combinations", "all settings", "nothing doubtful")


def nearest_setting(name: str) -> str | None:
    """Return the setting that a variable was most likely meant to be; None where that is not clear.

    Example:
        >>> nearest_setting("WORKER"), nearest_setting("MAX_BODY_BYTE"), nearest_setting("FACIAL_NATS_URL")
        ('WORKERS', 'MAX_BODY_BYTES', 'NATS_URL')
        >>> nearest_setting("HOSTNAME"), nearest_setting("FACIAL_PORT"), nearest_setting("WORKERS")
        (None, None, None)
    """
    if name in NAMES:
        return None
    for prefix in PREFIXES:
        bare = name.removeprefix(prefix)
        # FACIAL_SERVICE_HOST and _PORT are what Kubernetes tells of a Service of that name.
        if bare != name and bare in NAMES and "_" in bare:
            return bare
    if len(name) < SHORTEST:
        return None
    return next(iter(difflib.get_close_matches(name, NAMES, n=1, cutoff=CLOSE)), None)


def _find_wrong(context: Context) -> Iterator[Finding]:
    for wrong in context.wrong:
        yield error(
            "settings.values",
            wrong.name,
            "a value that is not taken",
            expected=wrong.message,
            advice=f"set {wrong.name} as expected, or unset it (chart: `settings.{wrong.name}`)"
            if wrong.name in NAMES
            else "set these as expected, or unset them (chart: `settings`)",
        )
    if not context.wrong:
        count = sum(name.upper() in NAMES for name, value in context.environment.items() if value)
        yield ok("settings.values", "environment variables", f"set: {count}, all of them right")


def _find_misspelt(context: Context) -> Iterator[Finding]:
    given = {name.upper() for name, value in context.environment.items() if value}
    is_any = False
    for name in sorted(given):
        setting = nearest_setting(name)
        if setting is None:
            continue
        is_any = True
        if setting in given:
            yield note("settings.names", name, f"nobody reads it; {setting} is set too", f"unset {name}")
        else:
            yield warning(
                "settings.names",
                name,
                "set, and nobody reads it",
                expected=setting,
                advice=f"rename it to {setting}, or unset it if it is another program's",
            )
    if not is_any:
        yield ok("settings.names", "environment variables", "none looks like a misspelt setting")
