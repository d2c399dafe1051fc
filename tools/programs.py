"""The programs that tests need and pip does not bring: one table, and the versions that `*/go.mod` pin."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

FOLDER = Path(__file__).resolve().parent
VERSION_PATTERN = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
PIN_PATTERN = re.compile(r"^(?:require)?\s+(\S+) (v\d\S*)", re.MULTILINE)

Version: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program, who needs it and where it comes from.

    Attributes:
        name: what tests call it.
        needed_by: the tests that are skipped without it.
        minimum: the oldest version that those tests work with.
        folder: the folder here whose `go.mod` pins it; apart, because programs disagree on versions of what they share.
        module: the Go module that is pinned.
        command: the folder of its command in that module.
        version_arguments: what makes it print its version.
        version_symbol: the Go variable that holds its version, which only a linker flag can fill.
        debian_package: the package that has it, empty if there is none.
        debian_name: what that package calls it.
        debian_data: the folder that Debian's program reads at its absolute path, empty if none.
        has_web_page: whether it embeds a built web page that its Go module does not contain.
    """

    name: str
    needed_by: str
    minimum: Version
    folder: str
    module: str
    command: str
    version_arguments: tuple[str, ...] = ("--version",)
    version_symbol: str = "github.com/prometheus/common/version.Version"
    debian_package: str = ""
    debian_name: str = ""
    debian_data: str = ""
    has_web_page: bool = False

    @property
    def go_mod(self) -> Path:
        """The file that pins it."""
        return FOLDER / self.folder / "go.mod"

    @property
    def source(self) -> str:
        """The Go package of its command."""
        return f"{self.module}/{self.command}"

    @property
    def path_names(self) -> tuple[str, ...]:
        """The names it may have on `PATH`, its own first."""
        return tuple(dict.fromkeys(filter(None, (self.name, self.debian_name))))


TOOLS: tuple[Tool, ...] = (
    Tool(
        name="prometheus",
        needed_by="live tests in which a Prometheus scrapes the service",
        minimum=(2, 42, 0),
        folder="prometheus",
        module="github.com/prometheus/prometheus",
        command="cmd/prometheus",
        debian_package="prometheus",
        debian_name="prometheus",
    ),
    Tool(
        name="promtool",
        needed_by="checks of the exposed metrics and of the Prometheus rules",
        minimum=(2, 42, 0),
        folder="prometheus",
        module="github.com/prometheus/prometheus",
        command="cmd/promtool",
        debian_package="prometheus",
        debian_name="promtool",
    ),
    Tool(
        name="alertmanager",
        needed_by="live tests in which an Alertmanager is sent alerts",
        minimum=(0, 25, 0),
        folder="alertmanager",
        module="github.com/prometheus/alertmanager",
        command="cmd/alertmanager",
        debian_package="prometheus-alertmanager",
        debian_name="prometheus-alertmanager",
        debian_data="/usr/share/prometheus/alertmanager",
        has_web_page=True,
    ),
    Tool(
        name="amtool",
        needed_by="checks of where alerts are routed",
        minimum=(0, 25, 0),
        folder="alertmanager",
        module="github.com/prometheus/alertmanager",
        command="cmd/amtool",
        debian_package="prometheus-alertmanager",
        debian_name="amtool",
    ),
    Tool(
        name="helm",
        needed_by="tests that render and lint the chart",
        minimum=(3, 14, 0),
        folder="helm",
        module="helm.sh/helm/v3",
        command="cmd/helm",
        version_arguments=("version", "--short"),
        version_symbol="helm.sh/helm/v3/internal/version.version",
    ),
)


def parse_version(text: str) -> Version | None:
    """Read the first version in a text, such as a program's answer to `--version`; a missing patch number is 0.

    Example:
        >>> parse_version("prometheus, version 2.42.0+ds (branch: debian/sid)")
        (2, 42, 0)
    """
    match = VERSION_PATTERN.search(text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def format_version(version: Version) -> str:
    """Write a version as a program would.

    Example:
        >>> format_version((3, 22, 0))
        '3.22.0'
    """
    return ".".join(map(str, version))


def read_pins(go_mod: Path) -> dict[str, Version]:
    """Read the version of every module that a `go.mod` requires."""
    matches = PIN_PATTERN.finditer(go_mod.read_text(encoding="utf-8"))
    return {match[1]: version for match in matches if (version := parse_version(match[2]))}


def compute_pinned_version(tool: Tool, pins: Mapping[str, Version]) -> Version:
    """Tell which version a program has when it is built from the pinned module.

    Raises:
        KeyError: the module is not pinned.
    """
    major, minor, patch = pins[tool.module]
    if tool.module == "github.com/prometheus/prometheus":
        # The module cannot be called v3 without a new import path, so release 3.16.0 is published as v0.316.0.
        return (minor // 100, minor % 100, patch)
    return (major, minor, patch)


def build_linker_flags(tool: Tool, pins: Mapping[str, Version]) -> str:
    """Write the linker flags of a release: no debug symbols, and the version filled in."""
    prefix = "v" if tool.name == "helm" else ""
    symbols = {tool.version_symbol: prefix + format_version(compute_pinned_version(tool, pins))}
    if tool.name == "helm":
        # Unless told, Helm renders charts for Kubernetes 1.20; its own releases take the client library's version.
        minor = pins["k8s.io/client-go"][1]
        for package in ("pkg/chartutil", "pkg/lint/rules"):
            symbols[f"{tool.module}/{package}.k8sVersionMajor"] = "1"
            symbols[f"{tool.module}/{package}.k8sVersionMinor"] = str(minor)
    return " ".join(["-s -w", *(f"-X {symbol}={value}" for symbol, value in symbols.items())])
