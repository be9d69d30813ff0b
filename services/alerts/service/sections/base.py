"""What a section of a digest gets, and what it gives."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.alerts.domain.words import Words
from shared.db import Row, Tx

MOST: Final = 5
"""Lines of a section, and one that says how many more there are."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Whose digest, and which period it covers: from `since` up to, and without, `until`.

    One that is `silenced` is for the app alone: what it says has not been told.
    """

    digest_id: UUID
    user_id: UUID
    since: datetime
    until: datetime
    silenced: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A section as it reads; `shows` is an alert whose chart goes with it."""

    title: str
    lines: tuple[str, ...]
    simulated: bool = False
    shows: UUID | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of section. `collect` runs in the digest's transaction; what finds nothing is left out."""

    collect: Callable[[Tx, Asked], Awaitable[Sequence[Row]]]
    render: Callable[[Sequence[Row], Words], Section]


def cut(lines: Sequence[str], total: int, most: int = MOST) -> tuple[str, ...]:
    """Return the first lines, and how many more there are in all."""
    shown = tuple(lines[:most])
    return (*shown, f"and {total - len(shown)} more") if total > len(shown) else shown


def signed(words: Words, amount: Decimal, unit: str) -> str:
    """Return a gain or a loss with its sign."""
    return f"{'+' if amount > 0 else ''}{words.money(amount, unit)}"
