"""The internals of prometheus_client that `app.observability.value_store` relies on.

Each row names one internal, the digest of its source, and what we rely on. If a digest differs after an upgrade, read
the new source, adapt `value_store` if necessary, and update the digest.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from prometheus_client import Counter, Gauge, Histogram, Metric, mmap_dict, multiprocess, values

from app.observability.value_store import StoredValue

APP = Path(__file__).parents[2] / "app"
ADAPTER = "observability/value_store.py"
PRIVATE_MODULES = {"prometheus_client.values", "prometheus_client.mmap_dict", "prometheus_client.multiprocess"}

SOURCES: dict[str, tuple[Any, str, str]] = {
    "mmap_dict.mmap_key": (
        mmap_dict.mmap_key,
        "0ad2f70c6bf8",
        "a key is a JSON array of metric name, sample name, labels and help text",
    ),
    "mmap_dict._read_all_values": (
        mmap_dict._read_all_values,
        "383694a38bf4",
        "a file has a 4-byte length, 4 unused bytes, and entries of length, padded key, value and timestamp",
    ),
    "mmap_dict.MmapedDict._init_value": (
        mmap_dict.MmapedDict._init_value,
        "b07be9310c27",
        "an entry is padded with spaces to a multiple of 8 bytes",
    ),
    "multiprocess.MultiProcessCollector._accumulate_metrics": (
        multiprocess.MultiProcessCollector._accumulate_metrics,
        "a7834784c48c",
        "samples of all processes are merged by kind and by Metric._multiprocess_mode, and gauges have a label 'pid'",
    ),
    "Counter._metric_init": (
        Counter._metric_init,
        "17b9d10bf21b",
        "values.ValueClass is called with kind, names, labels and help text",
    ),
    "Gauge._metric_init": (
        Gauge._metric_init,
        "d569c1f7e90e",
        "values.ValueClass is called with multiprocess_mode",
    ),
    "Histogram._metric_init": (
        Histogram._metric_init,
        "61aeac1b768d",
        "values.ValueClass is called for the sum and for each bucket",
    ),
    "Histogram.observe": (
        Histogram.observe,
        "38beca3be1d1",
        "an amount is added to _sum, and 1 to the first of _buckets whose bound in _upper_bounds is not below it",
    ),
    "Counter.inc": (Counter.inc, "a974907585d0", "an amount is added to _value"),
    "Gauge.inc": (Gauge.inc, "e705c1cdd8ca", "an amount is added to _value"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_source_is_known(name: str) -> None:
    function, digest, expectation = SOURCES[name]
    source = inspect.getsource(function)
    current = hashlib.sha256(source.encode()).hexdigest()[:12]
    assert current == digest, (
        f"prometheus_client.{name} differs from the version that app/{ADAPTER} was written for. We rely on this: "
        f"{expectation}. Check the new source and update the digest.\n{source}"
    )


def test_stored_value_has_the_interface_of_the_librarys_values() -> None:
    for name, member in vars(values.MutexValue).items():
        if name.startswith("__"):
            continue
        assert hasattr(StoredValue, name), f"prometheus_client calls {name} of a value, which StoredValue lacks"
        if callable(member):
            expected, ours = (list(inspect.signature(one).parameters) for one in (member, getattr(StoredValue, name)))
            assert ours == expected, f"StoredValue.{name}: expected the parameters {expected}, got {ours}"


def test_values_are_created_by_the_class_of_the_module() -> None:
    assert hasattr(values, "ValueClass"), "prometheus_client.values.ValueClass is missing; use_store replaces it"
    source = inspect.getsource(prometheus_client.metrics)
    assert "values.ValueClass(" in source, "metrics must look up values.ValueClass when they create a value"


def test_mode_of_a_gauge_is_an_attribute_of_its_metric() -> None:
    metric = Metric("name", "Help.", "gauge")
    metric._multiprocess_mode = "livesum"  # type: ignore[attr-defined]
    for slot in ("worker-0", "worker-1"):
        metric.add_sample("name", (("pid", slot),), 1.0)  # type: ignore[arg-type]
    (merged,) = multiprocess.MultiProcessCollector._accumulate_metrics({"name": metric}, accumulate=True)
    assert [(sample.labels, sample.value) for sample in merged.samples] == [({}, 2.0)], (
        "live gauges of two processes must be merged to their sum, by Metric._multiprocess_mode"
    )


def test_only_the_adapter_uses_internals() -> None:
    users = set()
    for path in APP.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            imported = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            if imported & PRIVATE_MODULES:
                users.add(path.relative_to(APP).as_posix())
    assert users == {ADAPTER}
