"""How an order is shown: what it was filled at is told by the fills that count, as everywhere else."""

from dataclasses import replace
from typing import Any, cast

import pytest

from services.broker.domain.orders import Leg, Order, Report
from services.broker.routes.orders import view
from services.broker.store.orders import Stored
from shared.db import Row
from tests.broker.samples import AAPL, CALL, T0, execution, order, run, terms, total

BUST = Report("accepted", (replace(execution("a", 40), busted=True),))


def shown(told: Order) -> str | None:
    row: dict[str, Any] = {
        "terms": {},
        "filled": 0,
        "parent": None,
        "refusals": None,
        "created_at": T0,
        "updated_at": T0,
    }
    return view(Stored(told, cast("Row", row))).average_price


@pytest.mark.parametrize(
    ("told", "average"),
    [
        ([], None),
        ([Report("fill", (execution("a", 40), execution("b", 40, 11)))], "10.50000000"),
        ([Report("fill", (execution("a", 40), execution("b", 40, 11))), BUST], "11.00000000"),
        ([Report("fill", (execution("a", 40),)), BUST], None),
        ([Report("accepted", (), (total(40, 12),))], "12.00000000"),
    ],
    ids=["nothing", "two executions", "one of them busted", "all busted", "a total without executions"],
)
def test_the_average_price_is_that_of_the_fills_that_count(told: list[Report], average: str | None) -> None:
    assert shown(run(order(), "submit_sent", "accepted", *told).order) == average


def test_of_several_legs_no_average_price_is_told() -> None:
    several = terms(1, legs=(Leg(AAPL, "buy", 100), Leg(CALL, "sell")), order_class="multi_leg")
    told = run(replace(order(), terms=several), "submit_sent", "accepted", Report("fill", (execution("a", 100),)))
    assert shown(told.order) is None
