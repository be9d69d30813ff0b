"""Pictures of dashboards, drawn of what Prometheus answers to their queries; Grafana itself is not there in a test."""

import re
from pathlib import Path
from typing import Any

from deploy.grafana.panel import Board, Panel
from tests.deploy.prometheus import Prometheus

COLUMNS = 3
MOST_LINES = 8


async def draw(prometheus: Prometheus, board: Board, start: float, end: float, folder: Path) -> None:
    """Write `<uid>.png`: each panel with its lines between two moments."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second, and only for pictures

    rows = -(-len(board.panels) // COLUMNS)
    figure = Figure(figsize=(15, 2.6 * rows), layout="constrained")
    figure.suptitle(board.title)
    for number, panel in enumerate(board.panels, 1):
        axes: Any = figure.add_subplot(rows, COLUMNS, number)
        axes.set_title(panel.title, fontsize=9)
        axes.tick_params(labelsize=7)
        found = [line for query, legend in panel.asks for line in await _lines(prometheus, query, legend, start, end)]
        lines = [(legend, points) for legend, points in found if points]
        for legend, points in lines[:MOST_LINES]:
            axes.plot([at - start for at, _ in points], [value for _, value in points], linewidth=1, label=legend)
        if lines:
            axes.legend(fontsize=5, loc="upper left")
            top = max((value for _, points in lines for _, value in points), default=0.0) or 1.0
            axes.set_ylim(-0.04 * top, 1.15 * top)
        else:
            axes.text(0.5, 0.5, _why(panel), ha="center", va="center", fontsize=7, transform=axes.transAxes)
    figure.savefig(folder / f"{board.uid}.png", dpi=70)


async def _lines(
    prometheus: Prometheus, query: str, legend: str, start: float, end: float
) -> list[tuple[str, list[tuple[float, float]]]]:
    found: list[tuple[str, list[tuple[float, float]]]] = []
    for series in await prometheus.range(query.replace("$__rate_interval", "1m"), start, end):
        name = legend
        for label, value in series["metric"].items():
            name = name.replace("{{" + label + "}}", value)
        name = re.sub(r"{{.*?}}", "", name)  # a label that this series does not have
        found.append((name.strip(), [(at, float(value)) for at, value in series["values"] if value != "NaN"]))
    return found


def _why(panel: Panel) -> str:
    return f"on Kubernetes: {panel.on_cluster}" if panel.on_cluster else f"nothing: {panel.after_fault}"
