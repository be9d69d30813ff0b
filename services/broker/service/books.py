"""Keeps positions: what moved them is kept once by its id, and the position follows from it."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from services.broker.domain.orders import Fill
from services.broker.domain.positions import BadFact, Position, PositionFact, apply
from services.broker.ports import Account
from services.broker.store.books import BookStore, Followed
from services.broker.store.orders import Flag, OrderStore
from shared.clock import Clock, NewId
from shared.contracts.base import Event, derived_id
from shared.contracts.broker import PositionChanged
from shared.db import Row, Tx

NO_FILLS: Final[tuple[Fill, ...]] = ()


class Books:
    """Books facts into positions."""

    def __init__(self, store: BookStore, orders: OrderStore, *, clock: Clock, new_id: NewId) -> None:
        self._store = store
        self._orders = orders
        self._clock = clock
        self._new_id = new_id

    async def book(
        self, tx: Tx, account: Account, facts: Iterable[PositionFact], withdrawn: Sequence[Fill] = NO_FILLS
    ) -> Sequence[Event]:
        """Withdraw what counts no more, add what is new, and tell each position that follows.

        A fact that cannot have happened is flagged, and does not count.
        """
        gone = {fill.instrument.key: fill.instrument for fill in withdrawn}
        await self._store.withdraw(tx, account.id, [fill.id for fill in withdrawn])
        known = {fact.id: fact for fact in facts}
        new = await self._store.add(tx, account.id, list(known.values()))
        added: dict[str, list[PositionFact]] = {}
        for fact in sorted((known[name] for name in new), key=lambda one: (one.at, one.id)):
            added.setdefault(fact.instrument.key, []).append(fact)
        symbols = sorted({*gone, *added})
        named = {symbol: added[symbol][0].instrument if symbol in added else gone[symbol] for symbol in symbols}
        await self._store.begin(tx, account.id, [Position(of) for of in named.values()])
        before = await self._store.positions(tx, account.id, symbols)
        follow = [
            await self._follow(tx, account, before[symbol], added.get(symbol, []), again=symbol in gone)
            for symbol in symbols
        ]
        versions = await self._store.save(tx, account.id, follow)
        return [self._changed(account, position, versions[position.instrument.key]) for position, _ in follow]

    async def _follow(
        self, tx: Tx, account: Account, before: tuple[Position, Row], new: list[PositionFact], *, again: bool
    ) -> Followed:
        """Return what is held now: from what was held, or from all facts where one came late or was withdrawn."""
        (position, row), facts = before, new
        of = position.instrument
        if row["last_at"] is not None:
            last: tuple[datetime, str] = (row["last_at"], row["last_id"])
            if again or (new[0].at, new[0].id) <= last:
                position = Position(of)
                facts = sorted(await self._store.facts(tx, account.id, of.key), key=lambda one: (one.at, one.id))
        for fact in facts:
            try:
                position = apply(position, fact)
            except BadFact as error:
                await self._flag(tx, account.id, fact, error)
        return position, (facts[-1].at, facts[-1].id) if facts else None

    def _changed(self, account: Account, position: Position, version: int) -> PositionChanged:
        return PositionChanged(
            id=self._new_id(),
            time=self._clock(),
            account_id=account.id,
            user_id=account.user_id,
            version=version,
            symbol=position.instrument.key,
            quantity=position.quantity,
            average_price=position.entry_price("average"),
            realised_fifo=position.realised("fifo"),
            realised_average=position.realised("average"),
            fees=position.fees,
        )

    async def _flag(self, tx: Tx, account_id: UUID, fact: PositionFact, error: BadFact) -> None:
        flag_id = derived_id(account_id, f"bad fact/{fact.id}")
        message = f"{fact.id}: {error.message}"
        await self._orders.flag(tx, Flag(flag_id, account_id, None, error.code, message, self._clock()))
