#!/usr/bin/env python3
"""Find, or set up in `.tools/bin`, the programs that tests need and pip does not bring.

Each program is taken from the first of these that has it at a version the tests work with:

1. `.tools/bin`, from an earlier run;
2. `PATH`;
3. its Debian package, unpacked into `.tools/debian` rather than installed, so that no service starts; only Alertmanager
   needs root for it, because Debian's reads its templates under `/usr/share`, where they are copied;
4. its source at the version in its `tools/*/go.mod`, built by Go, which takes minutes.

Tests look in `.tools/bin` first and then on `PATH`, so a program that `PATH` has under another name is linked.
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from programs import FOLDER, TOOLS, Tool, Version, compute_pinned_version, format_version, parse_version, read_pins
from sources import UnavailableError, place, provide_from_debian, provide_from_go, say

DEFAULT_HOME = FOLDER.parent / ".tools"
VERSION_TIMEOUT_S = 20.0
EXAMPLE = """examples:
  python3 tools/setup.py                    set up what the test-suite needs
  python3 tools/setup.py helm promtool      set up these two
  python3 tools/setup.py --check --strict   change nothing; exit code 1 if anything is missing
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one program: where it is and came from, or why it is missing."""

    tool: Tool
    path: Path | None = None
    version: Version | None = None
    origin: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Finder:
    """Looks for programs that are there already.

    Attributes:
        home: the folder with `bin` and `debian`.
        search_path: what `PATH` holds.
        is_pinned: whether only the version in its `go.mod` will do.
    """

    home: Path
    search_path: str
    is_pinned: bool = False

    def find(self, tool: Tool) -> Outcome:
        """Look for a program in `home/bin` and then on `PATH`."""
        own = self.home / "bin" / tool.name
        folders = [folder for folder in self.search_path.split(os.pathsep) if Path(folder) != own.parent]
        reason = "not on PATH"
        for name in (str(own), *tool.path_names):
            found = shutil.which(name, path=os.pathsep.join(folders))
            if found is None:
                continue
            version = read_version(tool, Path(found))
            objection = self.object_to(tool, version) or self.miss_data(tool, Path(found))
            if not objection:
                return Outcome(tool, Path(found), version, self.describe(Path(found)))
            reason = f"{found} {objection}"
        return Outcome(tool, reason=reason)

    def object_to(self, tool: Tool, version: Version | None) -> str:
        """Say what is wrong with a version, as a phrase; nothing if it will do."""
        if version is None:
            return "does not tell its version"
        pinned = compute_pinned_version(tool, read_pins(tool.go_mod))
        if self.is_pinned and version != pinned:
            return f"is {format_version(version)}, not {format_version(pinned)}"
        return f"is older than {format_version(tool.minimum)}" if version < tool.minimum else ""

    def miss_data(self, tool: Tool, path: Path) -> str:
        """Say which data an unpacked program lacks, as happens when `.tools` was brought from another machine."""
        is_unpacked = self.home / "debian" in follow_link(path).parents
        return f"lacks {tool.debian_data}" if is_unpacked and not Path("/", tool.debian_data).exists() else ""

    def describe(self, path: Path) -> str:
        """Say where a program came from."""
        target = follow_link(path) if path.parent == self.home / "bin" else path
        debian = self.home / "debian"
        if target.parent == self.home / "bin":
            return "built by Go"
        if debian not in target.parents:
            return f"PATH: {target}"
        return f"Debian package {target.relative_to(debian).parts[0].partition('_')[0]}"


def follow_link(path: Path) -> Path:
    """Follow one link only: what it leads to may itself choose what to run by the name it is called."""
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path


def read_version(tool: Tool, path: Path) -> Version | None:
    """Ask a program for its version; None if it does not run or does not tell."""
    command = [str(path), *tool.version_arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False)  # noqa: S603  asking is the point
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stdout) if answer.returncode == 0 else None


def set_up(tool: Tool, finder: Finder) -> Outcome:
    """Find a program, or get it from the first source that has it."""
    outcome = finder.find(tool)
    sources: list[Callable[[Tool, Path], None]] = [provide_from_debian, provide_from_go]
    if finder.is_pinned:
        sources.remove(provide_from_debian)
    reasons = [outcome.reason]
    for provide in sources:
        if outcome.path is not None:
            break
        try:
            provide(tool, finder.home)
            outcome = finder.find(tool)
            reasons.append(outcome.reason)
        except (UnavailableError, OSError) as error:
            reasons.append(str(error))
    if outcome.path is None:
        return Outcome(tool, reason="; ".join(reasons))
    if outcome.path.name != tool.name:
        place(tool, finder.home, outcome.path, is_link=True)
    return outcome


@contextmanager
def hold_lock(home: Path) -> Iterator[None]:
    """Let one process at a time set programs up; the next finds them done."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(tools: Sequence[Tool], finder: Finder, *, is_check: bool) -> list[Outcome]:
    """Find programs and, unless only checking, set up those that are missing or have another name."""
    with ThreadPoolExecutor() as pool:  # each program takes up to 0.1 s to tell its version
        outcomes = list(pool.map(finder.find, tools))
    if is_check or all(outcome.path and outcome.path.name == outcome.tool.name for outcome in outcomes):
        return outcomes
    try:
        with hold_lock(finder.home):
            return [set_up(tool, finder) for tool in tools]
    except OSError as error:
        say(f"nothing can be set up in {finder.home}: {error.strerror}")
        return outcomes


def format_table(outcomes: Sequence[Outcome]) -> str:
    """Write one line a program: its name, its version, and where it came from or why it is missing."""
    rows = [("tool", "version", "from")]
    for outcome in outcomes:
        version = format_version(outcome.version) if outcome.version else "missing"
        rows.append((outcome.tool.name, version, outcome.origin or outcome.reason))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {version:<{widths[1]}}  {origin}" for name, version, origin in rows)


def parse_tool(name: str) -> Tool:
    """Find a program in the table by its name.

    Raises:
        argparse.ArgumentTypeError: the table has no such program.
    """
    for tool in TOOLS:
        if tool.name == name:
            return tool
    raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(tool.name for tool in TOOLS)}")


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    lines = [f"  {tool.name:<14}{tool.needed_by}" for tool in TOOLS]
    parser = argparse.ArgumentParser(
        prog="tools/setup.py",
        description=__doc__,
        epilog="\n".join(["programs:", *lines, "", EXAMPLE]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "tools", metavar="NAME", nargs="*", type=parse_tool, help="a program; without names, all of them"
    )
    parser.add_argument("--check", action="store_true", help="report only; change nothing")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a program is missing")
    parser.add_argument(
        "--pinned", action="store_true", help="accept only the version in tools/*/go.mod, built if need be"
    )
    parser.add_argument("--into", metavar="DIR", type=Path, default=DEFAULT_HOME, help="instead of .tools")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see `--help`."""
    options = build_parser().parse_args(arguments)
    tools: list[Tool] = options.tools or list(TOOLS)
    finder = Finder(options.into.resolve(), os.environ.get("PATH", os.defpath), is_pinned=options.pinned)
    try:
        outcomes = run(tools, finder, is_check=options.check)
    except KeyboardInterrupt:
        say("interrupted; what is complete stays, and the next run goes on from there")
        return 130
    print(format_table(outcomes))
    missing = [outcome for outcome in outcomes if outcome.path is None]
    for outcome in missing:
        say(f"missing: {outcome.tool.name} ({outcome.reason}): skipped without it: {outcome.tool.needed_by}")
    return 1 if missing and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
