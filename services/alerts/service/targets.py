"""Targets of channels, sealed at rest: sealed where they are set, opened where a message goes out.

What is sealed is bound to its user, channel and lane: a row that was copied does not open. Addresses stay readable, for
what providers tell of mails names them. Lanes are keyed digests, so that nobody who reads the table can try guesses.

What would surprise you: for a day after the migration nothing is sealed where channels were in use, because replicas
from before it read what is written (docs/adr/0010-sealed-targets.md). `seal_readable` seals what lies so afterwards.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, cast

import msgspec
from prometheus_client import Counter

from services.alerts.domain.channels import lane_of, masked
from services.alerts.service.audit import Actor, audited
from services.alerts.store.targets import FIRST, Kept, Place, TargetStore
from shared.clock import Clock, NewId
from shared.contracts.alerts import Channel
from shared.db import Row, Tx
from shared.envelope import KEY_BYTES, Envelope, RandomBytes, Sealed, Unopened
from shared.errors import Invalid
from shared.messaging.door import Done, Door
from shared.work import Busy

_log = logging.getLogger(__name__)

READABLE: Final[frozenset[Channel]] = frozenset({"email"})
"""Channels whose targets are no secrets, and are asked for by their text."""
RETRY_S: Final = 300.0
"""A lane whose target does not open is looked at again after this: operators mend keys, not we."""
SLICES: Final = 20
_LANES: Final = b"openbell/lanes"

UNREADABLE: Final = Counter(
    "openbell_alerts_targets_unreadable_total", "Times that a channel's target did not open: a key is missing, or worse"
)


class TargetUnreadable(Busy):
    """This target does not open here; an operator has to look at the keys."""

    code = "TARGET_UNREADABLE"

    def __init__(self) -> None:
        super().__init__(retry_after_s=RETRY_S)


@dataclass(frozen=True, slots=True)
class Rotation:
    """A part of a rotation. `next` is where to go on; None: all has been seen.

    `keys`: how many targets lie under each key; `readable`: how many under none, and should.
    """

    rewrapped: int
    unreadable: Sequence[str]
    next: Place | None
    keys: dict[str, int] = field(default_factory=dict[str, int])
    readable: int = 0


class Targets:
    """Seals and opens targets."""

    def __init__(
        self,
        store: TargetStore,
        envelope: Envelope,
        door: Door,
        *,
        clock: Clock,
        new_id: NewId,
        random_bytes: RandomBytes,
    ) -> None:
        self._store = store
        self._envelope = envelope
        self._door = door
        self._clock = clock
        self._new_id = new_id
        self._random = random_bytes

    def open(self, row: Row) -> str:
        """Return the target of a row with its place and what is kept. Raises TargetUnreadable."""
        if row["target"]:
            return row["target"]
        place = Place.of(row)
        try:
            return self._envelope.open(_sealed(row), _about(place)).decode()
        except Unopened as error:
            raise _unreadable(place, error) from None

    def seal(self, place: Place, target: str) -> Kept:
        """Return a target as it is to be kept."""
        return seal(self._envelope, place, target)

    async def kept(self, tx: Tx, place: Place, target: str) -> Kept:
        """Return a target as it is to be kept now: readable for a while yet where replicas may be from before."""
        if place.channel in READABLE or not self._begun(await self._store.sealing(tx)):
            return Kept(target)
        return self.seal(place, target)

    async def lanes(self, tx: Tx, channel: Channel, target: str) -> list[str]:
        """Return what a target's lane is called: first for one that is new, then for one from before lanes were keyed.

        Raises TargetUnreadable where the key of lanes does not open.
        """
        plain = lane_of(channel, target)
        if channel in READABLE or not self._begun(row := await self._store.sealing(tx)):
            return [plain]
        if row["body"] is None:
            row = await self._lane_key(tx)
        try:
            key = self._envelope.open(_sealed(row), _LANES)
        except Unopened as error:
            raise _unreadable("lanes", error) from None
        return [lane_of(channel, target, key), plain]

    async def seal_readable(self, _: datetime) -> None:
        """Seal what lies readable and should not, slice by slice; broken off, it goes on with what is left."""
        while await self._door.run(self._seal_slice):
            pass

    async def rotate(self, actor: Actor, after: Place | None) -> Rotation:
        """Wrap what lies under old keys anew, some slices of it, each in a transaction of its own.

        What does not open is left as it is and told. Broken off, it goes on with what is still under old keys.
        """
        rewrapped, unreadable, last = 0, list[str](), after or FIRST
        going: Place | None = last
        if after is None:
            async with self._door.transaction() as tx:
                await self._rewrap_lane_key(tx, unreadable)
        for _ in range(SLICES):
            async with self._door.transaction() as tx:
                done, going = await self._rewrap_slice(tx, last, unreadable)
            rewrapped += done
            if going is None:
                break
            last = going

        async def tell(tx: Tx) -> Done[Rotation]:
            keys, readable = dict(await self._store.keys(tx)), await self._store.count_readable(tx)
            done = {"rewrapped": str(rewrapped), "unreadable": str(len(unreadable))}
            told = audited(actor, "rotate.targets", "targets", id=self._new_id(), at=self._clock(), **done)
            return Done(Rotation(rewrapped, unreadable, going, keys, readable), [told])

        return await self._door.run(tell)

    def _begun(self, row: Row) -> bool:
        return row["starts_at"] is None or row["starts_at"] <= self._clock()

    async def _lane_key(self, tx: Tx) -> Row:
        row = await self._store.sealing(tx, lock=True)
        if row["body"] is None:
            made = self._envelope.seal(self._random(KEY_BYTES), _LANES)
            await self._store.keep_lane_key(tx, key_id=made.key_id, wrapped=made.wrapped, body=made.body)
            row = await self._store.sealing(tx)
        return row

    async def _seal_slice(self, tx: Tx) -> Done[bool]:
        if not self._begun(await self._store.sealing(tx)):
            return Done(value=False)
        rows = await self._store.readable(tx)
        await self._store.seal(tx, [(place := Place.of(row), self.seal(place, row["target"])) for row in rows])
        return Done(len(rows) == self._store.slice_rows)

    async def _rewrap_lane_key(self, tx: Tx, unreadable: list[str]) -> None:
        row = await self._store.sealing(tx, lock=True)
        if row["key_id"] in {None, self._envelope.current}:
            return
        try:
            new = self._envelope.rewrap(_sealed(row), _LANES)
        except Unopened as error:
            _unreadable("lanes", error)
            unreadable.append("lanes")
        else:
            await self._store.keep_lane_key(tx, key_id=new.key_id, wrapped=new.wrapped, body=new.body)

    async def _rewrap_slice(self, tx: Tx, after: Place, unreadable: list[str]) -> tuple[int, Place | None]:
        rows = await self._store.under_old_keys(tx, self._envelope.current, after)
        wrapped: list[Mapping[str, object]] = []
        for row in rows:
            place = Place.of(row)
            try:
                new = self._envelope.rewrap(_sealed(row), _about(place))
            except Unopened as error:
                _unreadable(place, error)
                unreadable.append(str(place))
            else:
                wrapped.append(place.params() | {"key_id": new.key_id, "wrapped": new.wrapped})
        await self._store.rewrap(tx, wrapped)
        return len(wrapped), Place.of(rows[-1]) if len(rows) == self._store.slice_rows else None


def seal(envelope: Envelope, place: Place, target: str) -> Kept:
    """Return a target sealed by an envelope, as it is to be kept."""
    sealed = envelope.seal(target.encode(), _about(place))
    return Kept("", sealed.key_id, sealed.wrapped, sealed.body, _shown(place, target))


def shown_of(row: Row) -> str:
    """Return what may be shown of a row's target; nothing is opened."""
    return _shown(Place.of(row), row["target"]) if row["target"] else row["shown"]


def _shown(place: Place, target: str) -> str:
    try:
        return masked(cast("Channel", place.channel), target)
    except (msgspec.MsgspecError, Invalid, ValueError):
        return "…"  # whatever it is, it is sealed


def _sealed(row: Row) -> Sealed:
    return Sealed(row["key_id"], row["wrapped"], row["body"])


def _about(place: Place) -> bytes:
    return b"openbell/targets/" + place.user_id.bytes + place.lane.encode()


def _unreadable(what: Place | str, error: Unopened) -> TargetUnreadable:
    UNREADABLE.inc()
    _log.error("alerts.target_unreadable", extra={"target": str(what), "why": str(error)})
    return TargetUnreadable()
