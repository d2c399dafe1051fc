"""Where programs come from when neither `.tools/bin` nor `PATH` has them: Debian's packages, and Go.

Both functions that give a program put it at `home/bin/NAME` in one step, so that nobody runs half a file.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from programs import Tool, Version, build_linker_flags, format_version, parse_version, read_pins

PROGRESS_INTERVAL_S = 10.0
# Tests name their targets; the cloud clients of service discovery would double the build.
GO_BUILD_TAGS = "remove_all_sd"
PLACEHOLDER_PAGE = b"<!doctype html><title>Alertmanager</title><p>Built without its web page; the API is complete.</p>"


class UnavailableError(Exception):
    """A program cannot be had from here; the message is the reason, as a phrase."""


def say(message: str) -> None:
    """Report progress, on stderr so that stdout holds the table alone."""
    print(message, file=sys.stderr, flush=True)


def run_step(
    command: Sequence[str | Path], *, label: str, cwd: Path, variables: Mapping[str, str] | None = None
) -> str:
    """Run a command that may take minutes, with a line of progress every few seconds.

    Args:
        command: the program and its arguments.
        label: what the command does, for the progress lines.
        cwd: the folder to run it in.
        variables: environment variables besides the inherited ones.

    Returns:
        Everything it printed.

    Raises:
        UnavailableError: it failed; its last lines have been printed.
    """
    started_s = time.monotonic()
    environment = os.environ | {"LC_ALL": "C"} | dict(variables or {})
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603  commands are this file's own
                command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        with process:
            try:
                while process.poll() is None:
                    _wait_and_report(process, label, log, started_s)
            except BaseException:
                process.kill()
                raise
        printed = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        lines = printed.strip().splitlines() or ["it printed nothing"]
        say("\n".join(f"  | {line}" for line in lines[-15:]))
        raise UnavailableError(f"{label} failed: {lines[-1].strip()}")
    return printed


def _wait_and_report(process: subprocess.Popen[bytes], label: str, log: Path, started_s: float) -> None:
    """Wait for a process to end; if it does not soon, say how far it is."""
    try:
        process.wait(PROGRESS_INTERVAL_S)
    except subprocess.TimeoutExpired:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        latest = f", {len(lines)} steps, latest: {lines[-1]}" if lines else ""
        say(f"  {label}: {time.monotonic() - started_s:.0f} s{latest}")


def place(tool: Tool, home: Path, program: Path, *, is_link: bool) -> None:
    """Put a program, or a link to it, at `home/bin/NAME`, replacing what is there in one step."""
    bin_folder = home / "bin"
    partial = bin_folder / f".{tool.name}.{os.getpid()}"
    bin_folder.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    if not is_link:
        shutil.move(program, partial)
    elif home in program.parents:
        partial.symlink_to(os.path.relpath(program, bin_folder))  # holds when the whole folder is moved or mounted
    else:
        partial.symlink_to(program)
    partial.replace(bin_folder / tool.name)


def read_candidate(package: str) -> Version | None:
    """Ask apt which version of a package it would download; None if it knows none."""
    policy = run_step(["apt-cache", "policy", package], label=f"looking for Debian's {package}", cwd=Path("/"))
    for line in policy.splitlines():
        name, _, value = line.strip().partition(": ")
        if name == "Candidate":
            # An epoch such as the 1 of 1:2.42.0 is no part of the program's own version.
            return parse_version(value.rpartition(":")[2])
    return None


def provide_from_debian(tool: Tool, home: Path) -> None:
    """Unpack the program's Debian package into `home/debian`, uninstalled, and link the program.

    Installing would create users and start services; unpacking does neither. Root is needed only where the program
    reads data at an absolute path.

    Raises:
        UnavailableError: there is no apt, no package, only one that is too old, or no right to put its data in place.
    """
    package = tool.debian_package
    if not package:
        raise UnavailableError("no Debian package")
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UnavailableError("no apt-get here")
    candidate = read_candidate(package)
    if candidate is None and os.geteuid() == 0:
        say("updating apt's list of packages, which is empty or old")
        run_step(["apt-get", "update"], label="apt-get update", cwd=Path("/"))
        candidate = read_candidate(package)
    if candidate is None:
        raise UnavailableError(f"apt-get knows no package {package}; `apt-get update` may help")
    if candidate < tool.minimum:
        raise UnavailableError(f"Debian's {package} {format_version(candidate)} is too old")
    unpacked = home / "debian" / f"{package}_{format_version(candidate)}"
    if not unpacked.is_dir():
        _unpack_debian(package, unpacked)
    data = Path(tool.debian_data)
    if tool.debian_data and not data.exists():
        if os.geteuid() != 0:
            raise UnavailableError(f"Debian's {package} needs {data}, which only root can make")
        say(f"copying {data}, which Debian's {tool.name} reads")
        shutil.copytree(unpacked / data.relative_to("/"), data)
    place(tool, home, unpacked / "usr" / "bin" / tool.debian_name, is_link=True)


def _unpack_debian(package: str, unpacked: Path) -> None:
    """Download a package and unpack it to a folder, which appears when it is complete."""
    say(f"downloading Debian's {unpacked.name}")
    unpacked.parent.mkdir(parents=True, exist_ok=True)
    # Without the option, apt as root warns that its own user cannot write here.
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(dir=unpacked.parent) as folder:
        scratch = Path(folder)
        run_step(["apt-get", "download", *sandbox, package], label=f"downloading {package}", cwd=scratch)
        archive = next(scratch.glob("*.deb"))
        run_step(["dpkg-deb", "-x", archive, "unpacked"], label=f"unpacking {package}", cwd=scratch)
        (scratch / "unpacked").replace(unpacked)


def provide_from_go(tool: Tool, home: Path) -> None:
    """Build the program from the module that its `go.mod` pins.

    Raises:
        UnavailableError: there is no Go, or the build failed.
    """
    go = shutil.which("go")
    if go is None:
        raise UnavailableError("no Go on PATH")
    say(f"building {tool.name} with Go: minutes the first time, seconds once its parts are in Go's cache")
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        program = Path(scratch, tool.name)
        flags = ["-v", "-mod=readonly", "-trimpath", f"-tags={GO_BUILD_TAGS}"]
        flags += [f"-ldflags={build_linker_flags(tool, read_pins(tool.go_mod))}", f"-o={program}"]
        if tool.has_web_page:
            flags.append(f"-modfile={write_module_with_page(go, tool, Path(scratch))}")
        _run_go(tool, [go, "build", *flags, tool.source], label=f"building {tool.name}")
        place(tool, home, program, is_link=False)


def write_module_with_page(go: str, tool: Tool, scratch: Path) -> Path:
    """Unpack a module whose archive lacks the web page it embeds, and add a page so that it compiles.

    Go lets no overlay touch its cache of modules, so a copy takes the module's place for this build.

    Returns:
        A `go.mod` that differs from ours in that replacement only.
    """
    printed = _run_go(tool, [go, "mod", "download", "-json", tool.module], label=f"downloading {tool.module}")
    module = json.loads(printed[printed.index("{") :])
    with zipfile.ZipFile(module["Zip"]) as archive:
        archive.extractall(scratch)
    copy = scratch / f"{module['Path']}@{module['Version']}"
    page = copy / "ui" / "app" / "dist" / "index.html.gz"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_bytes(gzip.compress(PLACEHOLDER_PAGE))
    go_mod = scratch / "go.mod"
    replacement = f"\nreplace {tool.module} => {json.dumps(str(copy))}\n"
    go_mod.write_text(tool.go_mod.read_text(encoding="utf-8") + replacement, encoding="utf-8")
    shutil.copyfile(tool.go_mod.with_name("go.sum"), scratch / "go.sum")
    return go_mod


def _run_go(tool: Tool, command: Sequence[str], *, label: str) -> str:
    # A static program runs wherever the folder is copied; a workspace around the project is no business of this build.
    return run_step(command, label=label, cwd=tool.go_mod.parent, variables={"CGO_ENABLED": "0", "GOWORK": "off"})
