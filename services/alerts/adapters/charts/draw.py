"""Draws charts; a program of its own, for matplotlib's 100 MB and its crashes stay out of the service.

On its standard input come charts (services.alerts.domain.charts.Chart), each four bytes of length and its JSON; for
each, a byte (1: a picture, 0: what went wrong), four bytes of length and a PNG or a text go to its standard output. The
first answer, a picture of nothing in particular, says that it is warm. It ends with its input.

What would surprise you: it imports nothing of Openbell's and is run by its path, so that it starts as fast as it can.
Colours are those of Okabe and Ito, which people with any kind of colour blindness tell apart.
"""

import gc
import io
import json
import os
import signal
import sys
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final
from zoneinfo import ZoneInfo

ZONE: Final = ZoneInfo("America/New_York")
DPI: Final = 100
WIDTH_IN: Final = 7.2
TITLE_IN, PRICES_IN, GAP_IN, LEGEND_IN, BAR_IN, EDGE_IN = 0.85, 2.5, 0.35, 0.35, 0.42, 0.12

PRICE: Final = "#0072B2"
MARK: Final = "#D55E00"
VOLUME: Final = "#E69F00"
OPEN_INTEREST: Final = "#56B4E9"
TEXT: Final = "#333333"
QUIET: Final = "#777777"
GRID: Final = "#DDDDDD"
_FEW: Final = 3
_WARM: Final = {
    "symbol": "WARM",
    "session": "2025-01-02",
    "points": [[1735828200 + minute * 60, 100 + minute % 7] for minute in range(60)],
    "marked": 1735829000,
    "bars": [{"label": "17 Jan 100 call", "volume": 10, "open_interest": 1}],
    "simulated": True,
}


def picture(chart: dict[str, Any]) -> bytes:
    """Return a chart as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - in the child only
    from matplotlib.figure import Figure  # noqa: PLC0415 - same

    bars, points = chart["bars"], chart["points"]
    below_in = BAR_IN * len(bars) + LEGEND_IN if bars else 0.0
    height_in = TITLE_IN + (PRICES_IN + GAP_IN if points else 0.0) + below_in + EDGE_IN
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="white")
    if bars:
        _bars(figure.add_axes((0.24, EDGE_IN / height_in, 0.68, BAR_IN * len(bars) / height_in)), bars)
    if points:
        start_in = EDGE_IN + below_in + GAP_IN
        _prices(figure.add_axes((0.10, start_in / height_in, 0.82, PRICES_IN / height_in)), chart)
    _title(figure, chart)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def _title(figure: Any, chart: dict[str, Any]) -> None:
    day = datetime.fromisoformat(chart["session"])
    line = 1 - 0.28 / figure.get_figheight()
    symbol = figure.text(0.03, line, chart["symbol"], fontsize=18, fontweight="bold", color=TEXT, va="center")
    symbol.set_parse_math(False)
    figure.text(0.97, line, f"{day.day} {day:%B %Y}", fontsize=11, color=QUIET, ha="right", va="center")
    if chart["simulated"]:
        style = {"fontweight": "bold", "ha": "center", "va": "center"}
        figure.text(0.5, line, "SIMULATED", fontsize=16, color=MARK, **style)
        figure.text(0.5, 0.48, "SIMULATED", fontsize=52, rotation=22, color="black", alpha=0.07, **style)


def _prices(axes: Any, chart: dict[str, Any]) -> None:
    from matplotlib.dates import AutoDateLocator, DateFormatter  # noqa: PLC0415 - in the child only

    times = [datetime.fromtimestamp(at, UTC) for at, _ in chart["points"]]
    prices = [price for _, price in chart["points"]]
    style = {"marker": "o", "markersize": 3} if len(prices) < _FEW else {}
    axes.plot(times, prices, color=PRICE, linewidth=1.8, solid_joinstyle="round", **style)
    axes.margins(x=0.02, y=0.14)
    marked = datetime.fromtimestamp(chart["marked"], UTC)
    near = min(range(len(times)), key=lambda index: abs((times[index] - marked).total_seconds()))
    axes.axvline(times[near], color=MARK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.plot([times[near]], [prices[near]], marker="o", markersize=9, color=MARK, markeredgecolor="white", zorder=5)
    right = near > len(times) / 2
    axes.annotate(
        f"alert {marked.astimezone(ZONE):%H:%M}",
        (times[near], 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if right else 6, -4),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        fontsize=10,
        color=MARK,
        fontweight="bold",
    )
    axes.xaxis.set_major_locator(AutoDateLocator(minticks=3, maxticks=8, tz=ZONE))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M", tz=ZONE))
    axes.yaxis.set_major_formatter("{x:,.2f}")
    axes.grid(visible=True, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    _plain(axes)
    axes.text(1.0, 1.03, "USD, New York time", transform=axes.transAxes, ha="right", fontsize=9, color=QUIET)


def _bars(axes: Any, bars: list[dict[str, Any]]) -> None:
    rows = range(len(bars))
    height = 0.36
    most = max([1, *(max(bar["volume"], bar["open_interest"]) for bar in bars)])
    for offset, name, key, colour in (
        (-height / 2, "volume", "volume", VOLUME),
        (height / 2, "open interest", "open_interest", OPEN_INTEREST),
    ):
        values = [bar[key] for bar in bars]
        axes.barh([row + offset for row in rows], values, height=height, color=colour, label=name)
        for row, value in zip(rows, values, strict=True):
            axes.text(value + most * 0.012, row + offset, f"{value:,}", va="center", fontsize=8.5, color=TEXT)
    axes.set_yticks(list(rows), [bar["label"] for bar in bars])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.14)
    axes.xaxis.set_visible(False)
    _plain(axes)
    axes.spines["bottom"].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=9, labelcolor=TEXT)


def _plain(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=TEXT)


def _answer(out: BinaryIO, well: bool, body: bytes) -> None:  # noqa: FBT001 - private, and called twice
    out.write(bytes([well]) + len(body).to_bytes(4, "big") + body)
    out.flush()


def main() -> None:
    """Answer until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the service, which ends us
    os.nice(10)  # pictures take what is left of the machine; messages go first
    incoming, out = sys.stdin.buffer, sys.stdout.buffer
    _answer(out, True, picture(_WARM))
    gc.freeze()  # matplotlib itself is never garbage; looking through it would cost more than drawing
    while len(length := incoming.read(4)) == 4:  # noqa: PLR2004 - as many as the length takes
        try:
            _answer(out, True, picture(json.loads(incoming.read(int.from_bytes(length, "big")))))
        except Exception as error:  # noqa: BLE001 - told to who asked
            _answer(out, False, type(error).__name__.encode())


if __name__ == "__main__":
    main()
