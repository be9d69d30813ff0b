"""How an alert reads. What is simulated says so, first thing."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID

from services.alerts.domain.matching import Line, Summary
from services.alerts.domain.templates import Rendered
from services.alerts.domain.words import DEFAULT, Words

SIMULATED_MARK: Final = "[SIMULATED] "
SIMULATED_NOTE: Final = "Simulated data: no real market stands behind these figures."
REPEAT_NOTE: Final = "This may repeat an earlier message."
IMAGE_NAME: Final = "chart.png"
IMAGE_MAX: Final = 8 * 1024 * 1024
"""Bytes. What Discord takes; mail servers take more."""

_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
    "\xad\u034f\u180e\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Control characters; marks that turn the direction of what follows; what takes no room or looks like nothing.

Joiners (U+200C, U+200D) and variation selectors stay: scripts and emoji need them.
"""
_SIDES: Final = {
    "above_ask": "above the ask",
    "ask": "at the ask",
    "mid": "mid",
    "bid": "at the bid",
    "below_bid": "below the bid",
}
_RIGHTS: Final = {"C": "call", "P": "put"}


@dataclass(frozen=True, slots=True)
class Message:
    """What a sender sends. `target` is a webhook URL or an address: a secret, kept out of every repr.

    `kind` names the template that lays it out, with what `fields` hold besides title, lines and notes; `rendered` is
    the layout where it was made already. `image` is a PNG that goes with it, `unsubscribe` a signed link, `link`
    leads to the page about it (domain/clicks.py).
    """

    delivery_id: UUID
    target: str = field(repr=False)
    title: str
    lines: tuple[str, ...]
    notes: tuple[str, ...]
    simulated: bool
    at: datetime
    user_id: UUID | None = None
    kind: str = "message"
    words: Words = DEFAULT
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    rendered: Rendered | None = field(default=None, repr=False)
    image: bytes | None = field(default=None, repr=False)
    unsubscribe: str | None = field(default=None, repr=False)
    link: str | None = field(default=None, repr=False)


def context(message: Message) -> dict[str, Any]:
    """Return what a template sees of a message."""
    return {
        "kind": message.kind,
        "title": message.title,
        "lines": message.lines,
        "notes": message.notes,
        "simulated": message.simulated,
        "at": message.at,
        "unsubscribe": message.unsubscribe,
        "page": message.link,
        "image": f"cid:{IMAGE_NAME}" if message.image else None,
        **message.fields,
    }


def fitted(message: Message) -> Message:
    """Return the message without a picture that is too large to go with it; a note says so."""
    if message.image is None or len(message.image) <= IMAGE_MAX:
        return message
    note = f"The chart was left out: it is larger than {IMAGE_MAX // 1024 // 1024} MiB."
    return replace(message, image=None, notes=(*message.notes, note))


def visible(message: Message) -> Message:
    """Return the message without what nobody sees in its words: a name must not turn or hide the words around it."""
    return replace(
        message,
        title=_visible(message.title),
        lines=_visible(message.lines),
        notes=_visible(message.notes),
        fields=_visible(message.fields),
    )


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSEEN.sub("", value)
    if isinstance(value, Mapping):
        return {name: _visible(one) for name, one in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return tuple(map(_visible, cast("Sequence[Any]", value)))
    return value


def title(symbol: str, summary: Summary) -> str:
    """Return the alert in one line."""
    contracts = "contract" if summary.contract_count == 1 else "contracts"
    mark = SIMULATED_MARK if summary.simulated else ""
    return f"{mark}{symbol}: {summary.contract_count} unusual {contracts}, score {summary.top_score:.0f}"


def fields(symbol: str, best: Sequence[Line], contract_count: int) -> dict[str, Any]:
    """Return what an alert's template sees besides its words."""
    return {
        "symbol": symbol,
        "more": max(0, contract_count - len(best)),
        "contracts": [
            {
                "right": _RIGHTS[one.right],
                "expiration": one.expiration,
                "strike": one.strike,
                "score": round(one.score),
                "volume": one.volume,
                "open_interest": one.open_interest,
                "premium_usd": one.premium_usd,
                "side": _SIDES.get(one.side),
            }
            for one in best
        ],
    }


def line(symbol: str, one: Line, words: Words = DEFAULT) -> str:
    """Return one contract in one line."""
    parts = [
        f"{symbol} {one.expiration.isoformat()} {words.number(one.strike)} {_RIGHTS[one.right]}",
        f"score {one.score:.0f}",
        f"volume {words.number(one.volume)} over {words.number(one.open_interest)} open",
        f"premium {words.dollars(one.premium_usd)}",
    ]
    if one.side in _SIDES:
        parts.append(_SIDES[one.side])
    return ", ".join(parts)


def body(symbol: str, best: Sequence[Line], contract_count: int, words: Words = DEFAULT) -> tuple[str, ...]:
    """Return the best few contracts, and how many more there are."""
    lines = [line(symbol, one, words) for one in best]
    if contract_count > len(best):
        lines.append(f"and {contract_count - len(best)} more")
    return tuple(lines)


def notes(  # what stands below the contracts
    *,
    rule_name: str,
    session: date,
    as_of: datetime,
    delay_s: float,
    source: str,
    premium_usd: Decimal,
    simulated: bool,
    repeat: bool,
    words: Words = DEFAULT,
) -> tuple[str, ...]:
    """Return where the alert comes from, and what to keep in mind."""
    delay = f", delayed {delay_s / 60:.0f} min" if delay_s >= 60 else ""  # noqa: PLR2004 - shown in minutes
    told = [
        f"Rule {rule_name}. Total premium {words.dollars(premium_usd)} at most.",
        f"Session {session.isoformat()}, as of {words.clock(as_of)}{delay}, from {source}.",
    ]
    if simulated:
        told.append(SIMULATED_NOTE)
    if repeat:
        told.append(REPEAT_NOTE)
    return tuple(told)


def confirmation(delivery_id: UUID, target: str, link: str, at: datetime) -> Message:
    """Return the mail that asks whether an address is its user's."""
    return Message(
        delivery_id=delivery_id,
        target=target,
        title="Confirm that Openbell may send its alerts here",
        lines=(link,),
        notes=(
            "Open the link within 24 hours to receive alerts at this address.",
            "If you did not ask for this, do nothing: no more will come.",
        ),
        simulated=False,
        at=at,
        kind="confirmation",
    )
