"""Values with a misspelt name or another type are rejected by name."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from tests.chart.generator import keys, schema, service_settings
from tests.chart.helm import CHART, SCENARIOS, HelmError, Values, template

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chart.generator import values_file


def nest(path: tuple[str, ...], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def merge(defaults: Any, values: Any) -> Any:
    """Merge values with the defaults as Helm does, which removes a key whose value is null."""
    if not (isinstance(defaults, dict) and isinstance(values, dict)):
        return values
    merged = defaults | {name: merge(defaults.get(name), value) for name, value in values.items()}
    return {name: value for name, value in merged.items() if value is not None or name not in defaults}


@cache
def defaults() -> Values:
    read: Values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return read


def is_taken(values: Any) -> bool:
    return Draft7Validator(schema()).is_valid(merge(defaults(), values))


def mappings() -> dict[tuple[str, ...], set[str]]:
    """Return every closed level of the values, and its names."""
    levels = {(): {key.path[-1] for key in keys()} | {"global", "enabled"}}

    def walk(members: tuple[values_file.Key, ...]) -> Iterator[tuple[tuple[str, ...], set[str]]]:
        for key in members:
            if key.children:
                yield key.path, {child.path[-1] for child in key.children}
                yield from walk(key.children)
            elif "settings" in key.tags:
                part: Any = schema()
                for name in key.path:
                    part = part["properties"][name]
                yield key.path, set(part["properties"])

    # A parent chart passes all its global values.
    return {path: names for path, names in (levels | dict(walk(keys()))).items() if path != ("global",)}


LEVELS = mappings()

ON: Values = {"enabled": True}
EVERY_OBJECT: Values = {
    "worker": {"keda": ON},
    "metrics": {"serviceMonitor": ON, "probe": ON | {"proberUrl": "a:9115"}},
    "prometheusRule": ON,
    "dashboards": ON,
    "ingress": ON,
    "httpRoute": ON | {"parentRefs": [{"name": "a"}]},
    "networkPolicy": ON | {"natsMonitorFrom": [{"podSelector": {}}]},
    "verticalPodAutoscaler": ON,
}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"apis": {}}, "additional properties 'apis' not allowed"),
        ({"api": {"replica": 2}}, "at '/api': additional properties 'replica' not allowed"),
        ({"api": {"replicas": "2"}}, "at '/api/replicas': got string, want integer"),
        ({"api": {"replicas": None}}, "at '/api': missing property 'replicas'"),
        ({"apiKeys": {"secretKey": ""}}, "at '/apiKeys/secretKey': '' does not match pattern"),
        ({"externalNats": {"credsKey": "../a"}}, "at '/externalNats/credsKey': '../a' does not match pattern"),
        ({"api": {"replicas": -1}}, "at '/api/replicas': minimum: got -1, want 0"),
        ({"api": {"workers": 65}}, "at '/api/workers': maximum: got 65, want 64"),
        ({"api": {"service": {"type": "Nodeport"}}}, "at '/api/service/type': value must be one of"),
        ({"api": {"autoscaling": {"enabled": "false"}}}, "got string, want boolean"),
        ({"worker": {"enabled": "no"}}, "at '/worker/enabled': got string, want boolean"),
        ({"nats": {"replicas": 2}}, "at '/nats/replicas': value must be one of 1, 3, 5"),
        ({"nats": {"syncInterval": "2 minutes"}}, "at '/nats/syncInterval': '2 minutes' does not match pattern"),
        ({"image": {"pullPolicy": "Allways"}}, "at '/image/pullPolicy': value must be one of"),
        ({"image": {"digest": "sha256:abc"}}, "at '/image/digest': 'sha256:abc' does not match pattern"),
        ({"metrics": {"interval": 15}}, "at '/metrics/interval': got number, want string"),
        ({"metrics": {"serviceMonitor": True}}, "at '/metrics/serviceMonitor': got boolean, want object"),
        ({"commonLabels": {"a": 1}}, "at '/commonLabels/a': got number, want string"),
        ({"ingress": {"hosts": "a.example.com"}}, "at '/ingress/hosts': got string, want array"),
        ({"ingress": {"hosts": [1]}}, "at '/ingress/hosts/0': got number, want"),
        ({"fullnameOverride": "1a"}, "at '/fullnameOverride': '1a' does not match pattern"),
        ({"fullnameOverride": "A"}, "at '/fullnameOverride': 'A' does not match pattern"),
        ({"env": [{"value": "a"}]}, "at '/env/0': missing property 'name'"),
        ({"env": [{"name": "A", "values": "a"}]}, "at '/env/0': additional properties 'values' not allowed"),
        ({"global": {"imageRegistry": 1}}, "at '/global/imageRegistry': got number, want string"),
        ({"ipFamilies": ["ipv6"]}, "at '/ipFamilies/0': value must be one of 'IPv4', 'IPv6'"),
        ({"tolerations": []}, "additional properties 'tolerations' not allowed"),
        ({"settings": {"LOGLEVEL": "DEBUG"}}, "at '/settings': additional properties 'LOGLEVEL' not allowed"),
        ({"settings": {"log_level": "DEBUG"}}, "at '/settings': additional properties 'log_level' not allowed"),
        ({"settings": {"LOG_ACCESS": "false"}}, "at '/settings/LOG_ACCESS': got string, want null or boolean"),
        ({"settings": {"LOG_FORMAT": "text"}}, "at '/settings/LOG_FORMAT': value must be one of"),
        ({"settings": {"WORK_THREADS": 0}}, "at '/settings/WORK_THREADS': minimum: got 0, want 1"),
        ({"settings": {"WORK_THREADS": 1.5}}, "at '/settings/WORK_THREADS': got number, want null or integer"),
        ({"settings": {"TASK_WAIT_BUCKETS": ["1"]}}, "got string, want number"),
        ({"settings": {"WORKERS": 4}}, "at '/settings': additional properties 'WORKERS' not allowed"),
        ({"settings": {"API_KEYS": "a"}}, "at '/settings': additional properties 'API_KEYS' not allowed"),
        ({"worker": {"settings": {"RESULT_TTL": 60}}}, "additional properties 'RESULT_TTL' not allowed"),
        ({"api": {"settings": {"MAX_IMAGE_PIXELS": 60}}}, "additional properties 'MAX_IMAGE_PIXELS' not allowed"),
        ({"env": {"A": 1}}, "at '/env/A': got number"),
        ({"env": {"A-B": "1"}}, "does not match pattern"),
        ({"env": {"A": {"valuefrom": {}}}}, "additional properties 'valuefrom' not allowed"),
        ({"env": {"A": {"valueFrom": {"secretRef": {}}}}}, "additional properties 'secretRef' not allowed"),
    ],
)
def test_helm_refuses_with_the_name(values: Values, message: str) -> None:
    with pytest.raises(HelmError) as caught:
        template(values=values)
    assert "values don't meet the specifications of the schema" in str(caught.value)
    assert message in str(caught.value)
    assert not is_taken(values)


@given(level=st.sampled_from(sorted(LEVELS)), data=st.data())
@example(level=("api",), data=None)
def test_any_misspelt_key_is_refused(level: tuple[str, ...], data: st.DataObject | None) -> None:
    known = LEVELS[level]
    name = "replica" if data is None else data.draw(misspellings(known))
    assume(name not in known)
    assert not is_taken(nest(level, {name: None}))
    assert not is_taken(nest(level, {name: {}}))


@st.composite
def misspellings(draw: st.DrawFn, known: set[str]) -> str:
    """Return a known name with a letter added, removed, changed or moved, or in another case."""
    name = draw(st.sampled_from(sorted(known)))
    place = draw(st.integers(0, len(name) - 1))
    letter = draw(st.sampled_from("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-"))
    before, after = name[:place], name[place + 1 :]
    return draw(
        st.sampled_from(
            [
                before + after,
                before + letter + name[place:],
                before + letter + after,
                before + after[:1] + name[place] + after[1:],
                name.lower(),
                name.upper(),
                name.title(),
                f"{name}s",
            ]
        )
    )


@given(key=st.sampled_from([leaf for key in keys() for leaf in key.leaves()]), data=st.data())
def test_another_kind_of_value_is_refused(key: values_file.Key, data: st.DataObject) -> None:
    kinds: dict[str, Any] = {"boolean": True, "number": 1.5, "string": "a b", "array": [[]], "object": {"a b": []}}
    part: Any = schema()
    for name in key.path:
        part = part["properties"][name]
    types = {part["type"]} if isinstance(part["type"], str) else set(part["type"])
    if "free" in key.tags:
        kinds.pop("object")
    taken = {kind for kind in kinds if kind in types and kind != "array" and "pattern" not in key.tags} - {"object"}
    if "enum" in key.tags:
        taken = set()
    kind = data.draw(st.sampled_from(sorted(kinds.keys() - taken)))
    assert not is_taken(nest(key.path, kinds[kind]))


def test_every_level_is_closed_that_no_note_opens() -> None:
    opened = {leaf.path for key in keys() for leaf in key.leaves() if {"free", "map", "items"} & leaf.tags.keys()}
    opened.add(("global",))

    def walk(part: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if part.get("type") == "object" and part.get("additionalProperties") is not False:
            yield path
        for name, child in part.get("properties", {}).items():
            yield from walk(child, (*path, name))

    assert set(walk(schema(), ())) <= opened
    assert schema()["$schema"] == "http://json-schema.org/draft-07/schema#"
    Draft7Validator.check_schema(schema())


def test_every_key_has_its_meaning_in_the_schema() -> None:
    for key in keys():
        for leaf in key.leaves():
            part: Any = schema()
            for name in leaf.path:
                part = part["properties"][name]
            assert part["description"] == leaf.description
            assert part["default"] == leaf.default


@pytest.mark.parametrize("file", [CHART / "values.yaml", *SCENARIOS], ids=lambda file: file.stem)
def test_values_of_our_own_are_taken(file: Any) -> None:
    assert is_taken(yaml.safe_load(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "values",
    [
        {"global": {"other": 1}, "enabled": True},
        {"env": [{"name": "A", "value": "b"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "a"}}}]},
        {"global": {"imagePullSecrets": ["a", {"name": "b"}], "other": []}},
        {"settings": {"TASK_WAIT_BUCKETS": [1, 2.5]}},
        {"settings": {"TASK_WAIT_BUCKETS": "1,2.5"}},
        {"settings": {"BODY_TIMEOUT_S": 1}},
        {"settings": {"LOG_LEVEL": None, "LOG_FORMAT": None}, "env": {"A": None}},
        {"api": {"terminationGracePeriodSeconds": None}},
        {"api": {"podDisruptionBudget": {"maxUnavailable": "50%"}}},
        {"api": {"affinity": {"nodeAffinity": {}}}},
        {"env": {"A": "", "B": {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}}},
        {"extraObjects": ["a: b", {"a": "b"}]},
    ],
)
def test_what_is_meant_is_taken(values: Values) -> None:
    assert is_taken(values)


def test_null_removes_a_default_or_is_refused_by_name() -> None:
    """The chart needs the groups, and the values that are not empty by default, except maps and lists."""
    bases: list[Values] = [{}, EVERY_OBJECT]
    nulls, removed = bases, bases
    refused = 0

    def walk(members: tuple[values_file.Key, ...]) -> Iterator[values_file.Key]:
        for key in members:
            yield key
            yield from walk(key.children)

    for key in walk(keys()):
        if key.path == ("global",):
            continue
        if key.children or not (key.default in (None, "") or isinstance(key.default, list | dict)):
            (error,) = Draft7Validator(schema()).iter_errors(merge(defaults(), nest(key.path, None)))
            assert error.message == f"'{key.path[-1]}' is a required property"
            refused += 1
        elif key.default:
            removed = [filled(values, key.path, None) for values in removed]
        else:
            nulls = [filled(values, key.path, None) for values in nulls]
    assert refused > 100
    for base, values, fewer in zip(bases, nulls, removed, strict=True):
        assert template(values=values).text == template(values=base).text, "an empty default is the same as null"
        assert template(values=fewer).objects


def filled(values: Values, path: tuple[str, ...], value: Any) -> Values:
    """Add a value, unless the values already have one."""
    name, *rest = path
    if not rest:
        return {name: value} | values
    return values | {name: filled(values.get(name, {}), tuple(rest), value)}


def test_settings_are_the_services_less_the_charts() -> None:
    from app.settings import Settings  # noqa: PLC0415

    names = {name.upper() for name in Settings.model_fields}
    assert LEVELS[("settings",)] == names - service_settings.MANAGED_SETTINGS.keys()
    for component in ("api", "worker"):
        assert LEVELS[(component, "settings")] == LEVELS[("settings",)] - service_settings.SHARED_SETTINGS
