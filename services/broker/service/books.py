"""Keeps positions: what moved them is kept once by its id, and the position follows from it."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from services.broker.domain.instruments import Instrument
from services.broker.domain.orders import Fill
from services.broker.domain.positions import BadFact, Position, PositionFact, apply
from services.broker.ports import Account
from services.broker.store.books import BookStore
from services.broker.store.orders import Flag, OrderStore
from shared.clock import Clock, NewId
from shared.contracts.base import Event, derived_id
from shared.contracts.broker import PositionChanged
from shared.db import Tx

NO_FILLS: Final[tuple[Fill, ...]] = ()


class Books:
    """Books facts into positions."""

    def __init__(self, store: BookStore, orders: OrderStore, *, clock: Clock, new_id: NewId) -> None:
        self._store = store
        self._orders = orders
        self._clock = clock
        self._new_id = new_id

    async def book(
        self, tx: Tx, account: Account, facts: Iterable[PositionFact], withdrawn: Iterable[Fill] = NO_FILLS
    ) -> Sequence[Event]:
        """Withdraw what counts no more, add what is new, and tell each position that follows.

        A fact that cannot have happened is flagged, and does not count.
        """
        gone: dict[str, Instrument] = {}
        for fill in withdrawn:
            await self._store.withdraw(tx, account.id, fill.id)
            gone[fill.instrument.key] = fill.instrument
        added: dict[str, list[PositionFact]] = {}
        for fact in sorted(facts, key=lambda one: (one.at, one.id)):
            if await self._store.add(tx, account.id, fact):
                added.setdefault(fact.instrument.key, []).append(fact)
        events: list[Event] = []
        for symbol in sorted({*gone, *added}):
            new = added.get(symbol, [])
            of = new[0].instrument if new else gone[symbol]
            events.append(await self._follow(tx, account, of, new, again=symbol in gone))
        return events

    async def _follow(
        self, tx: Tx, account: Account, of: Instrument, new: list[PositionFact], *, again: bool
    ) -> PositionChanged:
        """Return what is held now: from what was held, or from all facts where one came late or was withdrawn."""
        await self._store.begin(tx, account.id, Position(of))
        found = await self._store.position(tx, account.id, of.key)
        position, facts = Position(of), new
        if found is not None and found[1]["last_at"] is not None:
            last: tuple[datetime, str] = (found[1]["last_at"], found[1]["last_id"])
            if again or (new[0].at, new[0].id) <= last:
                facts = sorted(await self._store.facts(tx, account.id, of.key), key=lambda one: (one.at, one.id))
            else:
                position = found[0]
        for fact in facts:
            try:
                position = apply(position, fact)
            except BadFact as error:
                await self._flag(tx, account.id, fact, error)
        ended = (facts[-1].at, facts[-1].id) if facts else None
        version = await self._store.save(tx, account.id, position, ended)
        return PositionChanged(
            id=self._new_id(),
            time=self._clock(),
            account_id=account.id,
            user_id=account.user_id,
            version=version,
            symbol=of.key,
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
