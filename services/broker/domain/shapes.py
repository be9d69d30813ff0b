"""How terms, executions and facts are written down, and read back.

Raises BadInstrument for a symbol that is none; what pydantic's validation raises is a ValueError.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from decimal import Decimal
from typing import Any, Final

from pydantic import TypeAdapter

from services.broker.domain.instruments import Instrument, Option, instrument
from services.broker.domain.orders import Cumulative, Execution, Exits, Fill, Leg, Order, Terms
from services.broker.domain.positions import Charge, Expiry, Position, PositionFact, Split
from shared.contracts.broker import ExitTerms, LegTerms, OrderTerms

KINDS: Final[dict[type[PositionFact], str]] = {Fill: "fill", Split: "split", Expiry: "expiry", Charge: "charge"}
_FACTS: Final[dict[str, TypeAdapter[Any]]] = {name: TypeAdapter(kind) for kind, name in KINDS.items()}
_NUMBERS: Final = ("quantity", "notional", "limit", "stop", "trail_amount", "trail_percent")
_EXECUTIONS: Final = TypeAdapter(tuple[Execution, ...])
_CUMULATIVE: Final = TypeAdapter(tuple[Cumulative, ...])
_POSITION: Final = TypeAdapter(Position)


def to_domain(terms: OrderTerms) -> Terms:
    """Return the terms of an order as the rules know them."""
    legs = tuple(Leg(instrument(leg.symbol, leg.underlying), leg.side, leg.ratio, leg.opens) for leg in terms.legs)
    exits = None if terms.exits is None else Exits(**terms.exits.model_dump())
    return Terms(legs, **terms.model_dump(exclude={"legs", "exits"}), exits=exits)


def load_terms(body: Mapping[str, Any]) -> Terms:
    """Read terms that `dump_terms` wrote; ten times as fast as by way of the contract, which has checked them."""
    legs = tuple(
        Leg(instrument(leg["symbol"], leg["underlying"]), leg["side"], leg["ratio"], leg["opens"])
        for leg in body["legs"]
    )
    numbers: dict[str, Any] = {name: Decimal(body[name]) for name in _NUMBERS if body[name] is not None}
    return Terms(
        legs,
        order_class=body["order_class"],
        strategy=body["strategy"],
        extended_hours=body["extended_hours"],
        type=body["type"],
        time_in_force=body["time_in_force"],
        exits=_load_exits(body.get("exits")),
        **numbers,
    )


def _load_exits(body: Mapping[str, str | None] | None) -> Exits | None:
    return None if body is None else Exits(**{name: value and Decimal(value) for name, value in body.items()})  # type: ignore[arg-type]


def dump_terms(terms: Terms) -> dict[str, Any]:
    """Return terms as JSON's values, as the contract writes them."""
    return to_contract(terms).model_dump(mode="json")


def to_contract(terms: Terms) -> OrderTerms:
    """Return the terms as they travel."""
    legs = tuple(
        LegTerms(
            symbol=leg.instrument.key,
            side=leg.side,
            ratio=leg.ratio,
            opens=leg.opens,
            underlying=_underlying(leg.instrument),
        )
        for leg in terms.legs
    )
    names = OrderTerms.model_fields.keys() - {"legs", "exits"}
    exits = None if terms.exits is None else ExitTerms(**asdict(terms.exits))
    return OrderTerms(legs=legs, exits=exits, **{name: getattr(terms, name) for name in names})


def dump_executions(found: tuple[Execution, ...]) -> list[Any]:
    """Return executions as JSON's values."""
    return _EXECUTIONS.dump_python(found, mode="json")


def load_executions(value: list[Any]) -> tuple[Execution, ...]:
    """Read executions back."""
    return _EXECUTIONS.validate_python(value, strict=False)


def dump_cumulative(found: tuple[Cumulative, ...]) -> list[Any]:
    """Return totals as JSON's values."""
    return _CUMULATIVE.dump_python(found, mode="json")


def load_cumulative(value: list[Any]) -> tuple[Cumulative, ...]:
    """Read totals back."""
    return _CUMULATIVE.validate_python(value, strict=False)


def dump_fact(fact: PositionFact) -> dict[str, Any]:
    """Return what moved a position as JSON's values."""
    return _FACTS[KINDS[type(fact)]].dump_python(fact, mode="json")


def load_fact(kind: str, value: dict[str, Any]) -> PositionFact:
    """Read what moved a position back."""
    found: PositionFact = _FACTS[kind].validate_python(value, strict=False)
    return found


def dump_position(position: Position) -> dict[str, Any]:
    """Return a position as JSON's values."""
    found: dict[str, Any] = _POSITION.dump_python(position, mode="json")
    return found


def load_position(value: dict[str, Any]) -> Position:
    """Read a position back."""
    return _POSITION.validate_python(value, strict=False)


def _underlying(of: Instrument) -> str | None:
    return of.underlying if isinstance(of, Option) and of.underlying != of.root else None


def resized(order: Order, quantity: Decimal) -> Order:
    """Return an order over another quantity."""
    return replace(order, terms=replace(order.terms, quantity=quantity))
