"""Draws what messages look like into docs/: `python -m tests.alerts.pictures` (needs Chromium; no part of CI).

The mails are what templates make of example messages; Discord's look is imitated around the embed's own texts.
"""

import html
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from services.alerts.adapters.discord import payload
from services.alerts.adapters.mail import letter
from services.alerts.domain import text
from services.alerts.domain.matching import Line
from services.alerts.domain.text import Message
from services.alerts.domain.words import Words
from tests.alerts.conftest import NOW

DOCS = Path(__file__).parents[2] / "docs"
SENDER = "Openbell <alerts@openbell.example>"
UNSUBSCRIBE = "https://openbell.example/links/unsubscribe?token=..."

_DISCORD = """<!doctype html><meta charset="utf-8"><body style="margin: 0; background: #313338; color: #dbdee1;
font: 15px/1.4 Helvetica, Arial, sans-serif; padding: 20px"><div style="color: #f2f3f5; font-weight: bold">Openbell
<span style="background: #5865f2; color: #fff; font-size: 10px; padding: 1px 4px; border-radius: 3px">APP</span></div>
<div style="margin: 4px 0 8px">{content}</div><div style="background: #2b2d31; border-left: 4px solid #{color:06x};
border-radius: 4px; padding: 12px 16px; max-width: 480px"><div style="color: #f2f3f5; font-weight: bold;
margin-bottom: 8px">{title}</div><div style="white-space: pre-line; font-size: 14px">{description}</div>
<div style="white-space: pre-line; font-size: 12px; margin-top: 10px; color: #b5bac1">{footer}</div></div>"""


def alert() -> Message:
    """Return an alert with three contracts, one of them sold."""
    best = [
        _line("C", 200, 12_840, 1_204, 2_632_200, "ask", 91.0),
        _line("C", 210, 8_410, 655, 958_740, "above_ask", 78.4),
        _line("P", 185, 3_100, 240, 341_000, "bid", 64.2),
    ]
    return Message(
        delivery_id=UUID(int=1),
        target="ada@example.com",
        title="AAPL: 5 unusual contracts, score 91",
        lines=text.body("AAPL", best, 5),
        notes=text.notes(
            rule_name="watchlist",
            session=NOW.date(),
            as_of=NOW,
            delay_s=900,
            source="cboe",
            premium_usd=Decimal(4_120_000),
            simulated=False,
            repeat=False,
            words=Words("en_US", "America/New_York"),
        ),
        simulated=False,
        at=NOW,
        kind="alert",
        words=Words("en_US", "America/New_York"),
        fields=text.fields("AAPL", best, 5),
        unsubscribe=UNSUBSCRIBE,
    )


def receipt() -> Message:
    """Return a receipt, whose link becomes a button."""
    return replace(
        alert(),
        title="Your Openbell subscription is renewed: 29.00 USD",
        lines=("Plan: pro", "Receipt: https://pay.example/receipts/1"),
        notes=(),
        kind="renewed",
        fields={},
    )


def discord_page(message: Message) -> str:
    """Return a page that looks as Discord shows the message."""
    made: dict[str, Any] = payload(message)
    (embed,) = made["embeds"]
    return _DISCORD.format(
        content=_shown(made["content"]),
        color=embed["color"],
        title=_shown(embed["title"]),
        description=_shown(embed["description"]),
        footer=html.escape(embed["footer"]["text"]),
    )


def draw(page: str, path: Path, size: tuple[int, int]) -> None:
    """Write a picture of a page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is needed: chromium, chromium-browser or google-chrome on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "page.html")
        source.write_text(page)
        width, height = size
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
        subprocess.run([chromium, *flags, f"--screenshot={path}", source.as_uri()], check=True, capture_output=True)


def main() -> None:
    """Draw all of them."""
    draw(letter(alert(), SENDER).html, DOCS / "mail-alert.png", (640, 490))
    draw(letter(receipt(), SENDER).html, DOCS / "mail-receipt.png", (640, 310))
    draw(discord_page(alert()), DOCS / "discord-alert.png", (560, 390))


def _line(right: Any, strike: int, volume: int, interest: int, premium: int, side: Any, score: float) -> Line:
    return Line(
        contract=f"AAPL250620{right}{strike:05d}000",
        right=right,
        expiration=date(2025, 6, 20),
        strike=Decimal(strike),
        last=Decimal("2.05"),
        volume=volume,
        open_interest=interest,
        premium_usd=Decimal(premium),
        side=side,
        score=score,
        simulated=False,
    )


def _shown(markdown: str) -> str:
    """Return what Discord makes of the markup that our templates use."""
    shown = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(markdown))
    return re.sub(r"\\([^\w\s])", r"\1", shown)


if __name__ == "__main__":
    main()
