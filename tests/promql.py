"""Analysis of PromQL: the metrics that an expression reads, and the labels of its result."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import promql_parser as promql

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COUNTER_FUNCTIONS = {"rate", "irate", "increase", "resets"}
GAUGE_FUNCTIONS = {"deriv", "delta", "predict_linear", "changes"}
# Added by Prometheus or by relabeling to every target; without Kubernetes, most are missing.
TARGET_LABELS = frozenset({"cluster", "namespace", "release", "job", "instance", "pod", "container", "role"})
SET_OPERATORS = {"and", "unless"}
COMPARISONS = {"==", "!=", ">", "<", ">=", "<="}


@dataclass(frozen=True)
class Metric:
    """A metric in the table of its exporter; ``kind`` is counter or gauge."""

    kind: str
    labels: frozenset[str]


@dataclass(frozen=True)
class Use:
    """One selector in an expression, with the function around it, if any, and its window in seconds, if any."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]
    function: str
    window_s: float | None


class Expression:
    """A parsed expression.

    Args:
        text: PromQL without variables.
        metrics: every metric that it may name.

    Raises:
        ValueError: the text is not PromQL.
    """

    def __init__(self, text: str, metrics: Mapping[str, Metric]) -> None:
        self._tree = promql.parse(text)
        self._metrics = metrics

    @cached_property
    def uses(self) -> list[Use]:
        """Every selector."""
        return list(_find(self._tree, ""))

    @cached_property
    def labels(self) -> frozenset[str]:
        """Labels that the result can have.

        Raises:
            AssertionError: a part uses a missing label, or joins vectors with different labels.
        """
        return self._labels(self._tree)

    def limits(self) -> list[tuple[float, float]]:
        """Return the thresholds of its first comparison, or of each part joined by ``or``.

        A product counts as two numbers: its first factor and its value.
        """
        return [(_first(right), _value(right)) for right in _compared(self._tree)]

    def _labels(self, node: Any) -> frozenset[str]:
        match node:
            case promql.VectorSelector():
                return self._labels_of_selector(node)
            case promql.Call():
                return self._labels_of_call(node)
            case promql.AggregateExpr():
                return self._labels_of_aggregate(node)
            case promql.BinaryExpr():
                return self._labels_of_binary(node)
        # A number has no operand, and every other node has one.
        return frozenset().union(*map(self._labels, _children(node)))

    def _labels_of_selector(self, selector: Any) -> frozenset[str]:
        assert selector.name in self._metrics, f"{selector.name} is no metric that is known"
        known = self._metrics[selector.name].labels
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked <= known, f"{selector.name} has no {asked - known}"
        return known

    def _labels_of_call(self, call: Any) -> frozenset[str]:
        name, arguments = call.func.name, list(call.args)
        if name == "histogram_quantile":
            inner = self._labels(arguments[1])
            assert "le" in inner, "a quantile needs the buckets"
            return inner - {"le"}
        inner = self._labels(arguments[0]) if arguments else frozenset()
        if name == "label_replace":
            target, _, source, _ = (argument.val for argument in arguments[1:])
            assert source in inner, f"{source} is not there to make {target} of"
            return inner | {target}
        return inner

    def _labels_of_aggregate(self, aggregate: Any) -> frozenset[str]:
        inner, modifier = self._labels(aggregate.expr), aggregate.modifier
        if modifier is None:
            return frozenset()
        named = frozenset(modifier.labels)
        assert named <= inner, f"{set(named - inner)} is not there to group by"
        return named if modifier.type == promql.AggModifierType.By else inner - named

    def _labels_of_binary(self, binary: Any) -> frozenset[str]:
        left, right = self._labels(binary.lhs), self._labels(binary.rhs)
        matching = binary.modifier.matching if binary.modifier else None
        if matching is not None and matching.type == promql.LabelModifierType.Include:
            joined = frozenset(matching.labels)
            assert joined <= left & right, f"{set(joined - (left & right))} is not on both sides"
            added = frozenset(binary.modifier.group_labels or ())
            assert added <= right, f"{set(added - right)} is not there to add"
            if added:
                return left | added
            if str(binary.op) in SET_OPERATORS or binary.modifier.card != promql.VectorMatchCardinality.OneToOne:
                return left
            return joined
        if str(binary.op) == "or":
            return left | right
        if not _is_scalar(binary.lhs) and not _is_scalar(binary.rhs) and matching is None:
            assert left == right, f"{set(left ^ right)} is on one side only, so that nothing matches"
        return left | right


def _is_scalar(node: Any) -> bool:
    match node:
        case promql.NumberLiteral():
            return True
        case promql.ParenExpr() | promql.UnaryExpr():
            return _is_scalar(node.expr)
        case promql.Call():
            return bool(node.func.name == "time")
        case promql.BinaryExpr():
            return _is_scalar(node.lhs) and _is_scalar(node.rhs)
    return False


def _compared(node: Any) -> Iterator[Any]:
    operator = str(node.op) if isinstance(node, promql.BinaryExpr) else ""
    if operator in COMPARISONS:
        yield node.rhs
    elif operator == "or":
        yield from _compared(node.lhs)
        yield from _compared(node.rhs)
    else:
        yield from itertools.islice((found for child in _children(node) for found in _compared(child)), 1)


def _first(node: Any) -> float:
    match node:
        case promql.NumberLiteral():
            return float(node.val)
        case promql.ParenExpr():
            return _first(node.expr)
        case promql.BinaryExpr():
            return _first(node.lhs)
    return math.nan


def _value(node: Any) -> float:
    if isinstance(node, promql.BinaryExpr) and str(node.op) == "*":
        return _value(node.lhs) * _value(node.rhs)
    return float(node.val) if isinstance(node, promql.NumberLiteral) else math.nan


def _children(node: Any) -> Iterator[Any]:
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        child = getattr(node, name, None)
        if child is not None:
            yield child
    yield from getattr(node, "args", ())


def _find(node: Any, function: str, window_s: float | None = None) -> Iterator[Use]:
    if isinstance(node, promql.VectorSelector):
        matchers = ((matcher.name, str(matcher.op), matcher.value) for matcher in node.matchers.matchers)
        yield Use(node.name, tuple(matchers), function, window_s)
        return
    if isinstance(node, promql.MatrixSelector):
        window_s = node.range.total_seconds()
    # An aggregated vector is no longer the function's own argument.
    is_argument = isinstance(node, promql.MatrixSelector | promql.ParenExpr | promql.SubqueryExpr)
    inside = node.func.name if isinstance(node, promql.Call) else function if is_argument else ""
    for child in _children(node):
        yield from _find(child, inside, window_s)
