"""The conformance cases: what every venue has to show, by number. The tests are in test_venues_*.py, the venues in
`venues`.

A case that a venue's capabilities rule out is skipped with the reason; any other that it cannot do, its row has to name
in `lacks`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from services.broker.domain.checks import AssetClass, Capabilities
from services.broker.domain.orders import OrderClass, OrderType, TimeInForce

Need = Callable[[Capabilities], str | None]
"""Returns why a venue with these capabilities cannot do it, or None."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that a venue shows. `name` is what a row's `lacks` calls it."""

    number: str
    name: str
    title: str
    need: Need


def _always(capabilities: Capabilities) -> None:
    """Every venue can."""


def _type(wanted: OrderType) -> Need:
    return lambda venue: None if wanted in venue.types else f"{venue.venue} takes no {wanted} orders"


def _time(wanted: TimeInForce) -> Need:
    return lambda venue: None if any(wanted in one for one in venue.times.values()) else f"{venue.venue}: no {wanted}"


def _trades(wanted: AssetClass) -> Need:
    return lambda venue: None if venue.times.get(wanted) else f"{venue.venue} does not trade {wanted}"


def _exits(venue: Capabilities) -> str | None:
    lacking = {"limit", "stop"} - venue.types
    return f"{venue.venue} takes no {lacking.pop()} orders" if lacking else None


def _class(wanted: OrderClass) -> Need:
    return lambda venue: None if wanted in venue.classes else f"{venue.venue} takes no {wanted} orders"


def _notional(venue: Capabilities) -> str | None:
    return None if venue.notional else f"{venue.venue} takes quantities only"


def _extended(venue: Capabilities) -> str | None:
    return None if venue.extended_hours else f"{venue.venue} trades in regular hours only"


def _cases() -> Iterator[tuple[str, str, Need]]:
    # Each type and each way to say how much and how long
    yield "market", "A market order is filled", _type("market")
    yield "limit", "A limit order rests and is filled", _type("limit")
    yield "stop", "A stop order is filled once the market is there", _type("stop")
    yield "stop-limit", "A stop-limit order is filled once the market is there", _type("stop_limit")
    yield "trailing-stop", "A trailing stop is filled once the market has turned", _type("trailing_stop")
    yield "day", "An order for the day", _time("day")
    yield "gtc", "An order until it is canceled", _time("gtc")
    yield "ioc", "An order for at once", _time("ioc")
    yield "fok", "An order for all at once or nothing", _time("fok")
    yield "opg", "An order for the opening", _time("opg")
    yield "cls", "An order for the close", _time("cls")
    yield "option", "An option of one leg", _trades("option")
    yield "spread", "A vertical spread: each leg is filled by its ratio", _class("multi_leg")
    yield "crypto", "A crypto pair", _trades("crypto")
    yield "fractional", "A quantity below one", _always
    yield "notional", "An order by its value is filled when the venue says so", _notional
    yield "bracket", "A stop protects what an entry filled, and is canceled for a take-profit", _exits
    yield "oco", "A stop that is filled in part is canceled, and a limit closes what is left", _exits
    yield "extended-hours", "An order for outside regular hours", _extended
    yield "rules", "Steps of known instruments are told, unknown ones left out", _always
    yield "credentials", "Credentials of the wrong shape are refused before anything is asked", _always
    # The life of an order
    yield "partial-fill", "A partial fill, then the rest, come by the stream", _always
    yield "nothing-missed", "What happens inside the stream's block comes, also before it is first read", _always
    yield "cancel", "A working order is canceled", _always
    yield "cancel-partial", "A partially filled order is canceled and keeps its fills", _always
    yield "cancel-lost-race", "An order is filled while its cancel is pending", _always
    yield "fill-then-cancel", "An order is filled in part while its cancel is pending, then canceled", _always
    yield "cancel-over", "A cancel of a filled order tells that it is filled", _always
    yield "replace", "A replacement takes the place of a working order", _always
    yield "replace-partial", "A partially filled order is replaced, and the fills of both count", _always
    yield "replace-lost-race", "An order is filled while its replacement is pending: only one of them fills", _always
    yield "replace-over", "A filled order is not replaced", _always
    yield "reject", "A refused order is rejected with the venue's reason and takes no effect", _always
    yield "expired", "The venue lets an order expire", _always
    yield "rejected-later", "The venue rejects an order that it had accepted", _always
    yield "late-fill", "A fill that comes after the cancel counts and is marked", _always
    # Losses and faults
    yield "timeout-found", "A submit without an answer is found, and is not sent again", _always
    yield "timeout-not-found", "A submit that never arrived is not found, and is sent again with one effect", _always
    yield "never-sent", "An id that the venue has never seen is not found", _always
    yield "same-id-twice", "An id that is submitted twice has one effect", _always
    yield "cancel-answer-lost", "A cancel without an answer is found to be done", _always
    yield "cancel-request-lost", "A cancel that never arrived leaves the order working, and is asked again", _always
    yield "replace-answer-lost", "A replacement without an answer is found to be done", _always
    yield "stream-cut", "A cut stream is told, and what was missed comes by `changes`", _always
    yield "frames-lost", "Frames that are lost without a word come by a look-up and by `changes`", _always
    yield "old-but-working", "`changes` tells orders that work, however long nothing has happened to them", _always
    yield "told-again", "`changes` and look-ups told again change nothing", _always
    yield "duplicate-fill", "A fill that is told twice counts once", _always
    yield "executions-known", "After a look-up every fill is known by the venue's execution id", _always
    yield "rate-limit", "A rate limit is Transient, and nothing was done", _always
    yield "clock-ahead", "A venue whose clock is 90 s ahead loses nothing", _always
    yield "clock-behind", "A venue whose clock is 90 s behind loses nothing", _always
    yield "restart", "After a restart every order is found in the state that it has", _always
    yield "books-agree", "Positions and cash after fills are what the executions say", _always
    yield "exact", "Quantities and prices are exact, never from a float", _always
    yield "busted", "A trade that the venue takes back counts no more", _always


CASES: Final = {
    f"V{number:02}": Case(f"V{number:02}", name, title, need)
    for number, (name, title, need) in enumerate(_cases(), start=1)
}


def reason_to_skip(case: Case, capabilities: Capabilities, lacks: frozenset[str]) -> str | None:
    """Return why a venue does not show a case, or None."""
    if case.name in lacks:
        return f"{capabilities.venue} lacks {case.name}"
    return case.need(capabilities)
