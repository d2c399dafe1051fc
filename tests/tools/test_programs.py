import doctest
import re
from pathlib import Path

import pytest

TOOLS_FOLDER = Path(__file__).resolve().parents[2] / "tools"

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(TOOLS_FOLDER))  # as `python3 tools/setup.py` has it
    import programs

GO_MODS = sorted(TOOLS_FOLDER.glob("*/go.mod"))


def test_doctests_pass() -> None:
    results = doctest.testmod(programs)
    assert (results.failed, results.attempted > 0) == (0, True)


def test_names_are_unique() -> None:
    assert len({tool.name for tool in programs.TOOLS}) == len(programs.TOOLS)


def test_go_mods_list_the_table_and_nothing_else() -> None:
    commands = re.compile(r"^(?:tool )?\s*(\S+/cmd/\S+)$", re.MULTILINE)
    listed = {
        (go_mod, command) for go_mod in GO_MODS for command in commands.findall(go_mod.read_text(encoding="utf-8"))
    }
    assert listed == {(tool.go_mod, tool.source) for tool in programs.TOOLS}


@pytest.mark.parametrize("tool", programs.TOOLS, ids=lambda tool: tool.name)
def test_pin_is_direct_summed_and_new_enough(tool: programs.Tool) -> None:
    direct = re.search(
        rf"^require {re.escape(tool.module)} (v\S+)$", tool.go_mod.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert direct is not None
    assert f"{tool.module} {direct[1]} h1:" in tool.go_mod.with_name("go.sum").read_text(encoding="utf-8")
    assert programs.compute_pinned_version(tool, programs.read_pins(tool.go_mod)) >= tool.minimum


@pytest.mark.parametrize("go_mod", GO_MODS, ids=lambda go_mod: go_mod.parent.name)
def test_go_mod_replaces_nothing(go_mod: Path) -> None:
    assert not re.search(r"^\s*(replace|exclude)\b", go_mod.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prometheus, version 2.42.0+ds (branch: debian/sid, revision: 2.42.0+ds-5+deb12u1)", (2, 42, 0)),
        ("alertmanager, version 0.25.0 (branch: debian/sid)\n  go version: go1.19.8", (0, 25, 0)),
        ("v3.22.0+gabcdef1", (3, 22, 0)),
        ("v3.22", (3, 22, 0)),
        ("(none)", None),
        ("", None),
    ],
)
def test_parse_version(text: str, expected: programs.Version | None) -> None:
    assert programs.parse_version(text) == expected


def test_read_pins_reads_blocks_and_single_lines(tmp_path: Path) -> None:
    go_mod = tmp_path / "go.mod"
    go_mod.write_text(
        "module m\n\ngo 1.26.7\n\nrequire a.example/one v1.2.3\n\nrequire (\n\ta.example/two/v3 v3.4.0 // indirect\n)",
        encoding="utf-8",
    )
    assert programs.read_pins(go_mod) == {"a.example/one": (1, 2, 3), "a.example/two/v3": (3, 4, 0)}


@pytest.mark.parametrize(
    ("name", "pins", "expected"),
    [
        ("prometheus", {"github.com/prometheus/prometheus": (0, 316, 2)}, (3, 16, 2)),
        ("promtool", {"github.com/prometheus/prometheus": (0, 305, 0)}, (3, 5, 0)),
        ("amtool", {"github.com/prometheus/alertmanager": (0, 34, 2)}, (0, 34, 2)),
        ("helm", {"helm.sh/helm/v3": (3, 22, 0)}, (3, 22, 0)),
    ],
)
def test_pinned_version(name: str, pins: dict[str, programs.Version], expected: programs.Version) -> None:
    tool = next(tool for tool in programs.TOOLS if tool.name == name)
    assert programs.compute_pinned_version(tool, pins) == expected


def test_linker_flags_fill_the_version_in() -> None:
    tool = next(tool for tool in programs.TOOLS if tool.name == "promtool")
    flags = programs.build_linker_flags(tool, {"github.com/prometheus/prometheus": (0, 316, 0)})
    assert flags == "-s -w -X github.com/prometheus/common/version.Version=3.16.0"


def test_linker_flags_of_helm_name_the_kubernetes_it_renders_for() -> None:
    tool = next(tool for tool in programs.TOOLS if tool.name == "helm")
    flags = programs.build_linker_flags(tool, {"helm.sh/helm/v3": (3, 22, 0), "k8s.io/client-go": (0, 37, 1)})
    assert "internal/version.version=v3.22.0" in flags
    assert "pkg/chartutil.k8sVersionMinor=37" in flags
