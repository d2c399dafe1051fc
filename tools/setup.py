#!/usr/bin/env python3
"""Install into `.tools` what tests need and pip does not provide: programs, definitions, and a page for dashboards.

A program is used from `.tools/bin` or `PATH` if its version suffices. Otherwise its Debian package is unpacked, which
takes seconds, or Go builds the version that `tools/*/go.mod` pins, which takes minutes. Debian packages are not
installed, so that no service starts. Definitions of custom resources are copied from the Go modules that
`tools/crds/go.mod` pins. npm installs what `tools/dashboards/package-lock.json` pins and builds the page from it.
Generators of API clients are installed from `tools/typescript_client` and `tools/python_client`, each in its own
folder, because their dependencies conflict with those of the service. What only a release needs (syft, `tools/spdx`) is
installed if it is named.
"""

import argparse
import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent
HOME = FOLDER.parent / ".tools"
PROGRESS_INTERVAL_S = 10.0
PAGE_NAME = "dashboards"
TYPESCRIPT_NAME = "typescript_client"
PYTHON_NAME = "python_client"
SPDX_NAME = "spdx"
PAGE = b"<!doctype html><title>Alertmanager</title><p>Built without its web page; the API is complete.</p>"

Version = tuple[int, int, int]


class SetupError(Exception):
    """Raised if something cannot be installed; the message is the reason."""


class Tool(NamedTuple):
    """A program: its oldest suitable version, its sources, and the tests that are skipped without it."""

    name: str
    needed_by: str
    minimum: Version
    go_folder: str  # with its own go.mod, because programs need different versions of shared modules
    go_package: str
    debian_package: str = ""
    debian_name: str = ""
    debian_data: str = ""  # read by Debian's program at this absolute path
    version_arguments: tuple[str, ...] = ("--version",)
    version_variable: str = "github.com/prometheus/common/version.Version"
    version_module: str = ""  # if the program is in this repository, the module whose version it has
    is_default: bool = True  # installed if nothing is named

    def pinned_version(self) -> str:
        """Return the version of the program that Go builds."""
        pins = read_pins(self.go_folder)
        if self.version_module:
            return pins[self.version_module]
        version = next(version for module, version in pins.items() if self.go_package.startswith(f"{module}/"))
        # The module path of Prometheus has no /v3, so that release 3.16.0 is published as v0.316.0.
        return re.sub(r"^0\.(\d)(\d\d)\.", lambda match: f"{match[1]}.{int(match[2])}.", version)


TOOLS = (
    Tool(
        "prometheus",
        "tests with a Prometheus that scrapes the service",
        (2, 42, 0),
        "prometheus",
        "github.com/prometheus/prometheus/cmd/prometheus",
        "prometheus",
        "prometheus",
    ),
    Tool(
        "promtool",
        "tests of the exposed metrics and of the rules",
        (2, 42, 0),
        "prometheus",
        "github.com/prometheus/prometheus/cmd/promtool",
        "prometheus",
        "promtool",
    ),
    Tool(
        "alertmanager",
        "tests of alerts in an Alertmanager",
        (0, 25, 0),
        "alertmanager",
        "github.com/prometheus/alertmanager/cmd/alertmanager",
        "prometheus-alertmanager",
        "prometheus-alertmanager",
        "/usr/share/prometheus/alertmanager",
    ),
    Tool(
        "amtool",
        "tests of the routing of alerts",
        (0, 25, 0),
        "alertmanager",
        "github.com/prometheus/alertmanager/cmd/amtool",
        "prometheus-alertmanager",
        "amtool",
    ),
    Tool(
        "helm",
        "tests of the chart",
        (3, 14, 0),
        "helm",
        "helm.sh/helm/v3/cmd/helm",
        version_arguments=("version", "--short"),
        version_variable="helm.sh/helm/v3/internal/version.version",
    ),
    Tool(
        "helm4",
        "tests of the chart with Helm 4",
        (4, 0, 0),
        "helm4",
        "helm.sh/helm/v4/cmd/helm",
        version_arguments=("version", "--short"),
        version_variable="helm.sh/helm/v4/internal/version.version",
    ),
    Tool(
        "test-collector",  # an own name, because other builds of the collector have other components
        "tests of traces",
        (0, 165, 0),
        "collector",
        ".",
        version_variable="main.version",
        version_module="go.opentelemetry.io/collector/otelcol",
    ),
    Tool(
        "actionlint",
        "the check of the workflows",
        (1, 7, 0),
        "actionlint",
        "github.com/rhysd/actionlint/cmd/actionlint",
        version_arguments=("-version",),
        version_variable="github.com/rhysd/actionlint.version",
    ),
    Tool(
        "syft",
        "the test of the SBOM",
        (1, 57, 0),
        "syft",
        "github.com/anchore/syft/cmd/syft",
        version_variable="main.version",
        is_default=False,
    ),
)


class Definitions(NamedTuple):
    """Definitions of custom resources in a Go module."""

    name: str
    module: str
    folder: str
    files: tuple[str, ...]

    def folder_in(self, home: Path) -> Path:
        """Return the folder of the copied definitions, which depends on their version."""
        return home / "crds" / f"{self.name}@v{read_pins('crds')[self.module]}"


DEFINITIONS_NAME = "crds"
DEFINITIONS = (
    Definitions(
        "prometheus-operator",
        "github.com/prometheus-operator/prometheus-operator",
        "example/prometheus-operator-crd",
        (
            "monitoring.coreos.com_podmonitors.yaml",
            "monitoring.coreos.com_probes.yaml",
            "monitoring.coreos.com_prometheusrules.yaml",
            "monitoring.coreos.com_servicemonitors.yaml",
        ),
    ),
    Definitions("keda", "github.com/kedacore/keda/v2", "config/crd/bases", ("keda.sh_scaledobjects.yaml",)),
    Definitions(
        "gateway-api",
        "sigs.k8s.io/gateway-api",
        "config/crd/standard",
        ("gateway.networking.k8s.io_httproutes.yaml",),
    ),
    Definitions(
        "vertical-pod-autoscaler", "k8s.io/autoscaler/vertical-pod-autoscaler", "deploy", ("vpa-v1-crd-gen.yaml",)
    ),
)


def read_pins(folder: str) -> dict[str, str]:
    """Return the version of each module in a `go.mod`, without its `v`."""
    text = (FOLDER / folder / "go.mod").read_text(encoding="utf-8")
    return dict(re.findall(r"^(?:require)?\s+(\S+) v(\d+\.\d+\.\d+)", text, re.MULTILINE))


def log(message: str) -> None:
    """Print progress to standard error."""
    print(message, file=sys.stderr, flush=True)


def run(*command: str | Path, label: str, cwd: Path = FOLDER) -> str:
    """Run a command, print progress every few seconds, and return its standard output.

    Raises:
        SetupError: the command is missing or failed; the last lines of its errors have been printed.
    """
    started_at = time.monotonic()
    # A static program works wherever the folder is copied; a Go workspace around the project must not affect the build.
    env = os.environ | {"LC_ALL": "C", "CGO_ENABLED": "0", "GOWORK": "off"}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(  # noqa: S603 - fixed commands
                command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )
        except FileNotFoundError:
            raise SetupError(f"{command[0]} is not on PATH") from None
        with process:
            try:
                while True:
                    try:
                        process.wait(PROGRESS_INTERVAL_S)
                        break
                    except subprocess.TimeoutExpired:
                        log(f"  {label}: {time.monotonic() - started_at:.0f} s")
            except BaseException:
                process.kill()
                raise
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            lines = errors.read().decode(errors="replace").strip().splitlines() or ["no output"]
            log("\n".join(f"  | {line}" for line in lines[-15:]))
            raise SetupError(f"{label} failed: {lines[-1].strip()}")
        return output.read().decode(errors="replace")


def read_version(tool: Tool, path: Path) -> Version | None:
    """Return the version that a program prints; None if it does not run."""
    try:
        done = subprocess.run([path, *tool.version_arguments], capture_output=True, text=True, timeout=20, check=False)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", done.stdout)
    return (int(match[1]), int(match[2]), int(match[3])) if match and done.returncode == 0 else None


def find(tool: Tool, home: Path) -> tuple[Path, Version]:
    """Return the path and the version of a program in `home/bin` or on `PATH`.

    Raises:
        SetupError: it is missing, or not suitable.
    """
    reason = "not on PATH"
    for name in (str(home / "bin" / tool.name), tool.name, tool.debian_name):
        found = shutil.which(name) if name else None
        if found is None:
            continue
        path, version = Path(found), read_version(tool, Path(found))
        # Data is missing if `.tools` was copied from another machine.
        is_unpacked = path.is_symlink() and "debian" in path.readlink().parts
        if version is None:
            reason = f"{path} does not print its version"
        elif version < tool.minimum:
            reason = f"{path}: expected {_format(tool.minimum)} or later, got {_format(version)}"
        elif is_unpacked and tool.debian_data and not Path(tool.debian_data).exists():
            reason = f"{path}: {tool.debian_data} is missing"
        else:
            return path, version
    raise SetupError(reason)


def _format(version: Version) -> str:
    return ".".join(map(str, version))


def link(tool: Tool, home: Path, target: Path) -> None:
    """Link a program as `home/bin/NAME`, atomically."""
    (home / "bin").mkdir(parents=True, exist_ok=True)
    partial = home / "bin" / f".{tool.name}"
    partial.unlink(missing_ok=True)
    # A relative link works if the whole folder is moved or mounted.
    partial.symlink_to(os.path.relpath(target, home / "bin") if home in target.parents else target)
    partial.replace(home / "bin" / tool.name)


def unpack_debian(tool: Tool, home: Path) -> None:
    """Unpack the Debian package of a program, and link the program.

    Raises:
        SetupError: there is no package, or its data needs root.
    """
    package = tool.debian_package
    if not package:
        raise SetupError("no Debian package")
    target = home / "debian" / package
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            _download_debian(package, Path(folder))
            run("dpkg-deb", "-x", next(Path(folder).glob("*.deb")), "unpacked", label="unpacking", cwd=Path(folder))
            Path(folder, "unpacked").replace(target)
    data = Path(tool.debian_data)
    if tool.debian_data and not data.exists():
        if os.geteuid() != 0:
            raise SetupError(f"{package} needs {data}, which only root can create")
        log(f"copying {data}, which Debian's {tool.name} reads")
        shutil.copytree(target / data.relative_to("/"), data)
    link(tool, home, target / "usr" / "bin" / tool.debian_name)


def _download_debian(package: str, folder: Path) -> None:
    # Without the option, apt warns that its own user cannot write to the folder.
    options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    log(f"downloading the Debian package {package}")
    try:
        run("apt-get", "download", *options, package, label=f"downloading {package}", cwd=folder)
    except SetupError:
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise
        log("updating the package lists of apt, which may be old")
        run("apt-get", "update", label="apt-get update")
        run("apt-get", "download", *options, package, label=f"downloading {package}", cwd=folder)


def build_with_go(tool: Tool, home: Path) -> None:
    """Build the pinned version of a program with Go.

    Raises:
        SetupError: go is missing, or the build failed.
    """
    log(f"building {tool.name} with Go: minutes the first time, seconds with a warm cache")
    version = tool.pinned_version()
    variables = {tool.version_variable: f"v{version}" if tool.name.startswith("helm") else version}
    if tool.name == "helm":
        # By default, Helm 3 renders charts for Kubernetes 1.20; its releases set the version of the client library.
        minor = read_pins("helm")["k8s.io/client-go"].split(".")[1]
        for package in ("pkg/chartutil", "pkg/lint/rules"):
            variables |= {
                f"helm.sh/helm/v3/{package}.k8sVersionM{name}": value
                for name, value in (("ajor", "1"), ("inor", minor))
            }
    # Tests configure static targets; service discovery would double the build.
    flags = ["-mod=readonly", "-trimpath", "-tags=remove_all_sd"]
    flags.append(f"-ldflags=-s -w {' '.join(f'-X {name}={value}' for name, value in variables.items())}")
    (home / "bin").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        if tool.name == "alertmanager":
            flags.append(f"-modfile={_add_page(tool, Path(folder))}")
        program = Path(folder, tool.name)
        run(
            "go",
            "build",
            *flags,
            f"-o={program}",
            tool.go_package,
            label=f"building {tool.name}",
            cwd=FOLDER / tool.go_folder,
        )
        program.replace(home / "bin" / tool.name)


def _add_page(tool: Tool, folder: Path) -> Path:
    """Return a go.mod that uses a copy of Alertmanager's module with the page that it embeds and does not contain."""
    module = tool.go_package.partition("/cmd/")[0]
    downloaded = _download_module(module, tool.go_folder)
    with zipfile.ZipFile(downloaded["Zip"]) as archive:
        archive.extractall(folder)
    copy = folder / f"{downloaded['Path']}@{downloaded['Version']}"
    page = copy / "ui" / "app" / "dist" / "index.html.gz"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_bytes(gzip.compress(PAGE))
    go_mod = folder / "go.mod"
    text = (FOLDER / tool.go_folder / "go.mod").read_text(encoding="utf-8")
    go_mod.write_text(f"{text}\nreplace {module} => {json.dumps(str(copy))}\n", encoding="utf-8")
    shutil.copyfile(FOLDER / tool.go_folder / "go.sum", folder / "go.sum")
    return go_mod


def _download_module(module: str, folder: str) -> dict[str, str]:
    """Download a pinned module, whose hash Go compares with `go.sum`, and return Go's description of it."""
    version = f"v{read_pins(folder)[module]}"
    label = f"downloading {module} {version}"
    printed = run("go", "mod", "download", "-json", f"{module}@{version}", label=label, cwd=FOLDER / folder)
    found: dict[str, str] = json.loads(printed)
    return found


def set_up_tool(tool: Tool, home: Path) -> str:
    """Find or install a program, and return its version and path.

    Raises:
        SetupError: no source has it; the message has all reasons.
    """
    steps: list[Callable[[Tool, Path], None]] = [lambda *_: None, unpack_debian, build_with_go]
    reasons = []
    for step in steps:
        try:
            step(tool, home)
            path, version = find(tool, home)
        except (SetupError, OSError) as error:
            reasons.append(str(error))
            continue
        if path.name != tool.name:
            link(tool, home, path)
        return f"{_format(version):<10}{path.resolve()}"
    raise SetupError(f"{'; '.join(reasons)}; skipped without it: {tool.needed_by}")


def set_up_definitions(definitions: Definitions, home: Path) -> str:
    """Copy definitions, unless they exist, and return their folder.

    Raises:
        SetupError: the module cannot be downloaded, or lacks a file.
    """
    target = definitions.folder_in(home)
    if not all((target / file).is_file() for file in definitions.files):
        module = Path(_download_module(definitions.module, "crds")["Dir"])
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            partial = Path(folder, "partial")
            partial.mkdir()
            for file in definitions.files:
                shutil.copyfile(module / definitions.folder / file, partial / file)
            partial.replace(target)
    return f"{target.name.partition('@')[2]:<10}{target}"


def set_up_page(source: Path, home: Path) -> str:
    """Build the page that draws dashboards, unless its sources are unchanged, and return its folder.

    Raises:
        SetupError: npm is missing, or it failed.
    """
    files = sorted(path for path in source.iterdir() if path.is_file())
    version = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]
    target = home / PAGE_NAME / version
    if not target.is_dir():
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            for path in files:
                shutil.copyfile(path, Path(folder, path.name))
            run("npm", "ci", label="installing Grafana's components", cwd=Path(folder))
            run("npm", "run", "build", label="building the page for dashboards", cwd=Path(folder))
            Path(folder, "built").replace(target)
    return f"{version:<10}{target}"


def folder_of(name: str, home: Path = HOME) -> Path:
    """Return the folder of installed packages, which depends on the versions that are pinned."""
    files = sorted(path for path in (FOLDER / name).iterdir() if path.is_file())
    return home / name / hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def set_up_typescript(source: Path, home: Path) -> str:
    """Install the generator of TypeScript clients, unless its versions are unchanged, and return its folder.

    Raises:
        SetupError: npm is missing, or it failed.
    """

    def install(folder: Path) -> None:
        for path in source.iterdir():
            shutil.copyfile(path, folder / path.name)
        run("npm", "ci", label="installing openapi-typescript", cwd=folder)

    return _install(source, home, install)


def set_up_python(source: Path, home: Path) -> str:
    """Install the packages of a lock file, unless their versions are unchanged, and return their folder.

    Raises:
        SetupError: pip failed.
    """

    def install(folder: Path) -> None:
        run(sys.executable, "-m", "venv", folder, label="creating an environment")
        pip = (folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        lock = source / "requirements.lock"
        run(*pip, "--require-hashes", "--requirement", lock, label=f"installing tools/{source.name}")

    return _install(source, home, install)


def _install(source: Path, home: Path, install: Callable[[Path], None]) -> str:
    target = folder_of(source.name, home)
    if not target.is_dir():
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            content = Path(folder, "content")
            content.mkdir()
            install(content)
            content.replace(target)
    return f"{target.name:<10}{target}"


def main(arguments: Sequence[str] | None = None, home: Path = HOME) -> int:
    """Install what is named, or everything; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(tool.name for tool in TOOLS), DEFINITIONS_NAME, PAGE_NAME, TYPESCRIPT_NAME, PYTHON_NAME, SPDX_NAME]
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"what to install: {', '.join(names)}")
    wanted: list[str] = parser.parse_args(arguments).names
    if unknown := set(wanted) - set(names):
        parser.error(f"NAME: expected {', '.join(names)}, got {', '.join(sorted(unknown))}")
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:  # concurrent runs wait for each other
        fcntl.flock(lock, fcntl.LOCK_EX)
        for tool in TOOLS:
            if tool.name in wanted or (not wanted and tool.is_default):
                _report(tool.name, set_up_tool, tool, home)
        for definitions in DEFINITIONS if not wanted or DEFINITIONS_NAME in wanted else ():
            _report(definitions.name, set_up_definitions, definitions, home)
        if not wanted or PAGE_NAME in wanted:
            _report(PAGE_NAME, set_up_page, FOLDER / PAGE_NAME, home)
        for name, set_up in ((TYPESCRIPT_NAME, set_up_typescript), (PYTHON_NAME, set_up_python)):
            if not wanted or name in wanted:
                _report(name, set_up, FOLDER / name, home)
        if SPDX_NAME in wanted:
            _report(SPDX_NAME, set_up_python, FOLDER / SPDX_NAME, home)
    return 0


def _report(name: str, set_up: Callable[[Any, Path], str], item: Tool | Definitions | Path, home: Path) -> None:
    try:
        print(f"{name:<20}{set_up(item, home)}", flush=True)
    except (SetupError, OSError) as error:
        print(f"{name:<20}missing", flush=True)
        log(f"{name} is missing: {error}")


if __name__ == "__main__":
    sys.exit(main())
