"""Small chains for the detector's tests, and the rule said plainly, a contract at a time."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from math import isfinite
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pyarrow as pa

from services.detector.domain.rule import Rule
from shared.contracts.data import CHAIN_SCHEMA, ChainCollected, ChainHeader

SESSION = date(2026, 7, 24)
AS_OF = datetime(2026, 7, 24, 15, 30, 12, tzinfo=UTC)
CBOE = Path(os.environ.get("OPENBELL_TEST_DATA", "/work/shared/data")) / "cboe" / "aapl_chain_2026-07-24.json"


def occ(symbol: str = "AAPL", expiration: date = date(2026, 8, 21), right: str = "C", strike: float = 110) -> str:
    return f"{symbol}{expiration:%y%m%d}{right}{round(strike * 1000):08d}"


def row(**changes: Any) -> dict[str, Any]:
    """A contract that meets the rule; name fields to differ."""
    plain: dict[str, Any] = {
        "expiration": date(2026, 8, 21),
        "right": "C",
        "strike": 110.0,
        "bid": 1.00,
        "ask": 1.10,
        "last": 1.10,
        "volume": 2_000.0,
        "open_interest": 400.0,
        "iv": 0.3,
        "delta": None,
        "gamma": None,
        "theta": None,
        "vega": None,
    }
    plain |= changes
    if "contract" not in plain:
        plain["contract"] = occ("AAPL", plain["expiration"], plain["right"], plain["strike"])
    return plain


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = {name: [each[name] for each in rows] for name in CHAIN_SCHEMA.names}
    return pa.table(
        {name: pa.array(columns[name], CHAIN_SCHEMA.field(name).type, from_pandas=False) for name in columns},
        schema=CHAIN_SCHEMA,
    )


def header(
    symbol: str = "AAPL",
    *,
    minute: float = 0,
    session: date = SESSION,
    close: float | None = 100.0,
    simulated: bool = False,
) -> ChainHeader:
    return ChainHeader(
        symbol=symbol,
        session=session,
        as_of=AS_OF + timedelta(minutes=minute),
        source="replay",
        simulated=simulated,
        delay_s=900.0,
        close=close,
    )


def collected(head: ChainHeader, rows: Sequence[Mapping[str, Any]], event_id: UUID | None = None) -> ChainCollected:
    return ChainCollected(id=event_id or uuid4(), time=head.as_of, header=head, contracts=table(rows))


def plainly(rule: Rule, head: ChainHeader, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names that meet the rule, found the slow way."""
    names: list[str] = []
    for each in rows:
        volume, interest, last = each["volume"], each["open_interest"], each["last"]
        if any(value is None or not isfinite(value) for value in (volume, interest, last)):
            continue
        if each["expiration"] < head.session or each["contract"] in names:
            continue
        if volume > rule.volume and interest > rule.open_interest and last > rule.last_usd:  # noqa: SIM102
            if interest and volume / interest >= rule.ratio:
                names.append(each["contract"])
    return names


def recorded_aapl() -> list[dict[str, Any]]:
    """The rows of the recorded AAPL chain, as a source adapter would hand them on."""
    rows: list[dict[str, Any]] = []
    for option in json.loads(CBOE.read_text())["data"]["options"]:
        name = option["option"]
        tail = name[-15:]
        rows.append(
            row(
                contract=name,
                expiration=datetime.strptime(tail[:6], "%y%m%d").replace(tzinfo=UTC).date(),
                right=tail[6],
                strike=int(tail[7:]) / 1000,
                last=option["last_trade_price"],
                iv=option["iv"] or None,
                **{field: option[field] for field in ("bid", "ask", "volume", "open_interest", "delta")},
            )
        )
    return rows
