"""What a PromQL expression reads, so that rules and dashboards can be held to the metrics that exist."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import promql_parser

_SUFFIXES: Final = ("_bucket", "_sum", "_count")
_INSIDE: Final = ("expr", "lhs", "rhs", "vector_selector")


@dataclass(frozen=True, slots=True)
class Read:
    """One selector: the series it names, the labels it asks for, and the aggregation right around it, if any."""

    name: str
    labels: frozenset[str]
    within: str | None

    def metric(self, known: set[str]) -> str:
        """Return the metric that the series is part of: a histogram's for its buckets."""
        bare = next((self.name.removesuffix(one) for one in _SUFFIXES if self.name.endswith(one)), self.name)
        return bare if bare in known else self.name


def reads(expression: str) -> list[Read]:
    """Return what an expression selects. Raises ValueError when it is none."""
    return list(_walk(promql_parser.parse(expression), None))


def _walk(node: Any, within: str | None) -> Iterator[Read]:
    if isinstance(node, promql_parser.VectorSelector):
        labels = frozenset(one.name for one in node.matchers.matchers)
        yield Read(str(node.name), labels, within)
        return
    if isinstance(node, promql_parser.AggregateExpr):
        within = str(node.op)
    elif isinstance(node, promql_parser.BinaryExpr):
        within = None
    inside = [getattr(node, name, None) for name in _INSIDE]
    for one in (*inside, *getattr(node, "args", ())):
        if one is not None:
            yield from _walk(one, within)
