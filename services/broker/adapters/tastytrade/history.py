"""tastytrade's transactions, and what they did to positions. Pure.

    Trade            a fill. Of an order of ours only its fees are new; of another's it is a fill
    Receive Deliver  without an action, an option is gone: expired, exercised, assigned, or settled for cash (`value`);
                     with one, something came or went at a price: what an option delivered, a dividend in shares,
                     a transfer. A split is two of them, one closes and one opens the same symbol at the same moment
    Money Movement   counts where it is a fee on an instrument

What would surprise you: an execution carries no fee here. Fees of our own fills are charges of their own.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Final
from uuid import UUID, uuid5

from services.broker.adapters.tastytrade.shapes import instrument_of, moment, number, side_of
from services.broker.adapters.tastytrade.wire import Json
from services.broker.domain.instruments import Instrument, Option
from services.broker.domain.orders import ZERO, Fill
from services.broker.domain.positions import Charge, Expiry, PositionFact, Split

_FEES: Final = ("regulatory-fees", "clearing-fees", "commission", "proprietary-index-option-fees", "other-charge")
_SPLITS: Final = frozenset({"Forward Split", "Reverse Split"})
_PAIR: Final = 2


def facts_of(rows: Iterable[Json], ours: Collection[str], account: UUID) -> list[PositionFact]:
    """Return what an account's transactions did. `ours` are the venue's ids of the orders that we placed."""
    told = {str(row["id"]): row for row in rows}
    pairs = _split_pairs(told)
    found: list[PositionFact] = []
    for row_id, row in told.items():
        of = instrument_of(row)
        if of is None:
            continue
        if row_id in pairs:
            found += pairs[row_id]
        elif (fact := _fact(row, of, ours, account)) is not None:
            found.append(fact)
    return found


def order_ids(rows: Iterable[Json]) -> set[str]:
    """Return the orders that trades belong to."""
    return {str(row["order-id"]) for row in rows if row.get("order-id") is not None}


def _fact(row: Json, of: Instrument, ours: Collection[str], account: UUID) -> PositionFact | None:
    kind, sub = row.get("transaction-type"), row.get("transaction-sub-type")
    quantity, fact_id, at = number(row.get("quantity")), f"tastytrade/{row['id']}", moment(row["executed-at"])
    if kind == "Trade" and str(row.get("order-id")) in ours:
        return Charge(f"{fact_id}/fees", of, at, _fees(row)) if _fees(row) else None
    if kind == "Money Movement":
        fee = _signed(row, "value")
        return Charge(fact_id, of, at, fee) if sub == "Fee" and fee else None
    if kind not in {"Trade", "Receive Deliver"} or quantity <= 0:
        return None
    if row.get("action"):
        order = str(row.get("order-id") or f"transaction {row['id']}")
        side = "buy" if side_of(row["action"]) == "buy" else "sell"
        return Fill(fact_id, uuid5(account, order), of, side, quantity, _price(row, of, quantity), at, _fees(row))
    if isinstance(of, Option):
        return Expiry(fact_id, of, at, quantity, abs(number(row.get("value"))) / (quantity * of.multiplier))
    return None


def _price(row: Json, of: Instrument, quantity: Decimal) -> Decimal:
    """Return the price, or where there is none what the value makes of it."""
    if row.get("price") is not None:
        return number(row["price"])
    return abs(number(row.get("value"))) / (quantity * of.multiplier)


def _fees(row: Json) -> Decimal:
    return sum((_signed(row, name) for name in _FEES), ZERO)


def _signed(row: Json, name: str) -> Decimal:
    """Return an amount: above zero it costs us."""
    amount = number(row.get(name))
    return -amount if row.get(f"{name}-effect") == "Credit" else amount


def _split_pairs(told: Mapping[str, Json]) -> dict[str, Sequence[PositionFact]]:
    """Return what stands in the place of the two rows of each split: the split, and nothing."""
    groups = defaultdict[tuple[str, str], list[str]](list)
    for row_id, row in told.items():
        if row.get("transaction-sub-type") in _SPLITS and row.get("action"):
            groups[str(row.get("symbol")), str(row["executed-at"])].append(row_id)
    pairs: dict[str, Sequence[PositionFact]] = {}
    for ids in groups.values():
        opening = [one for one in ids if str(told[one]["action"]).endswith("Open")]
        closing = [one for one in ids if one not in opening]
        if len(ids) == _PAIR and len(opening) == 1:
            pairs |= {opening[0]: _split(told[opening[0]], told[closing[0]]), closing[0]: ()}
    return pairs


def _split(opening: Json, closing: Json) -> Sequence[PositionFact]:
    of, new, old = instrument_of(opening), number(opening["quantity"]), number(closing["quantity"])
    if of is None or new <= 0 or old <= 0:
        return ()
    after = new if side_of(opening["action"]) == "buy" else -new
    return (Split(f"tastytrade/{opening['id']}", of, moment(opening["executed-at"]), new, old, after),)
