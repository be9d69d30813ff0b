"""What a dashboard and a panel are, and the queries that they have in common.

`$__rate_interval` is Grafana's: four scrapes at least. A panel that can only show something after a fault says why in
`after_fault`; one that reads exporters of a cluster says so in `on_cluster`; every query of every other one finds
something after a run, which a test tries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

CHANNELS: Final = "discord|email|webhook|webpush|fcm|apprise"
Unit = Literal["short", "s", "percentunit", "ops", "bytes", "none"]


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `asks` are pairs of a query and its legend; `stat` is one number instead of a line."""

    title: str
    about: str
    asks: Sequence[tuple[str, str]]
    unit: Unit = "short"
    stat: bool = False
    after_fault: str = ""
    on_cluster: str = ""
    """Whose exporter brings its series; they are there on Kubernetes alone."""


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    about: str
    panels: Sequence[Panel]


def rate(metric: str, by: str, chosen: str = "") -> str:
    """Return a rate, put together over replicas."""
    return f"sum by ({by}) (rate({metric}{{{chosen}}}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str = "", chosen: str = "") -> str:
    """Return a quantile of a histogram."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{chosen}}}[$__rate_interval])))"


def quantiles(metric: str, chosen: str = "") -> Sequence[tuple[str, str]]:
    """Return three of them, with legends."""
    return tuple((quantile(q, metric, chosen=chosen), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99))


def published(kinds: str) -> tuple[str, str]:
    """Return the rate of committed events of some types, by type and state."""
    return rate("openbell_events_published_total", "type, state", f'type=~"{kinds}"'), "{{type}} {{state}}"
