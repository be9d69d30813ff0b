"""Orders that were filled in the period, and what positions realised. Paper and live money are never added up."""

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Final

from sqlalchemy import text

from services.alerts.domain.words import Words
from services.alerts.service.sections.base import Asked, Section, cut, signed
from shared.db import Row, Tx

_TRADED: Final = text("""
    select t.symbol, coalesce(t.mode, known.mode) as mode, sum(t.fills) as fills, sum(t.bought) as bought,
        sum(t.sold) as sold, sum(t.bought_for) as bought_for, sum(t.sold_for) as sold_for, sum(t.fees) as fees,
        sum(t.realised) as realised
    from trading t
    left join lateral (select mode from trading m where m.user_id = t.user_id and m.account_id = t.account_id
        and m.mode is not null order by m.quarter desc limit 1) known on true
    where t.user_id = :user_id and t.quarter >= :since and t.quarter < :until
    group by t.symbol, coalesce(t.mode, known.mode) order by 2, 1""")


async def collect(tx: Tx, asked: Asked) -> Sequence[Row]:
    """Return what was traded, by symbol and by paper or live."""
    return await tx.fetch(_TRADED, user_id=asked.user_id, since=asked.since, until=asked.until)


def render(found: Sequence[Row], words: Words) -> Section:
    """Return a line a symbol, and a sum a currency."""
    lines: list[str] = []
    gains: dict[tuple[str, str], tuple[Decimal, Decimal]] = defaultdict(lambda: (Decimal(0), Decimal(0)))
    with localcontext(prec=60):
        for row in found:
            mode = row["mode"] or "unknown account"
            parts = [
                f"{verb} {words.number(quantity)} at {words.number(round(value / quantity, 4))}"
                for verb, quantity, value in (
                    ("bought", row["bought"], row["bought_for"]),
                    ("sold", row["sold"], row["sold_for"]),
                )
                if quantity
            ]
            if parts:
                lines.append(f"{row['symbol']} ({mode}): {', '.join(parts)}")
            gain, fees = gains[mode, currency(row["symbol"])]
            gains[mode, currency(row["symbol"])] = (gain + row["realised"], fees + row["fees"])
        sums = [
            f"Realised ({mode}): {signed(words, gain, unit)} before fees of {words.money(fees, unit)}"
            for (mode, unit), (gain, fees) in sorted(gains.items())
        ]
    return Section("Orders and P&L", (*cut(lines, len(lines)), *sums))


def currency(symbol: str) -> str:
    """Return what a symbol is paid in: USD, or what a pair says."""
    return symbol.partition("/")[2] or "USD"
