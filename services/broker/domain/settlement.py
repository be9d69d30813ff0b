"""What becomes of options in paper accounts when they expire, by the underlying's close.

In the money by a cent or more, what is long is exercised and what is short assigned: shares change hands at the strike.
Options on an index (its symbol begins with an underscore) and adjusted contracts are settled in money. There is no fee.
"""

from datetime import datetime
from decimal import Decimal
from typing import Final
from uuid import UUID, uuid5

from services.broker.domain.desk import Desk
from services.broker.domain.instruments import Option
from services.broker.domain.orders import ZERO
from services.broker.domain.positions import Expiry, PositionFact, delivery

_LEAST: Final = Decimal("0.01")


def settle(desk: Desk, account_id: UUID, of: Option, close: Decimal, now: datetime) -> tuple[PositionFact, ...]:
    """End an account's working orders of an option and turn what it holds of it into what it is worth.

    All of the account's orders that name the option, and all that it holds of its underlying, are loaded.
    """
    for ticket in desk.tickets.values():
        names_it = any(leg.instrument.key == of.key for leg in ticket.working.terms.legs)
        if names_it and ticket.account_id == account_id and ticket.state == "accepted":
            desk.end(ticket, "expired", now, f"OPTION_EXPIRED: {of.key}")
    held = desk.holdings.get((account_id, of.underlying), {}).get(of.key)
    if held is None or not held.stock.quantity:
        return ()
    quantity, fact_id = held.stock.quantity, f"expiry/{of.key}/{now.isoformat()}"
    worth = max(close - of.strike if of.right == "C" else of.strike - close, ZERO)
    if worth < _LEAST or of.adjusted or of.underlying.startswith("_"):
        price = worth if worth >= _LEAST else ZERO
        desk.move(account_id, of, -quantity, price)
        return (Expiry(fact_id, of, now, abs(quantity), price),)
    expiry, shares = delivery(
        of,
        "exercised" if quantity > 0 else "assigned",
        abs(quantity),
        at=now,
        fact_id=fact_id,
        order_id=uuid5(account_id, fact_id),
    )
    desk.move(account_id, of, -quantity, ZERO)
    signed = shares.quantity if shares.side == "buy" else -shares.quantity
    desk.move(account_id, shares.instrument, signed, shares.price)
    return expiry, shares
