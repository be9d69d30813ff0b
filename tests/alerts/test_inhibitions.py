"""While one kind fires, another is not told where both are about the same; the log says by what it was held back."""

from datetime import time, timedelta
from typing import Any, get_args
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.domain.routing import ANY, CRITICAL, Equal, Firing, Inhibition, Quiet, Ring, Wishes, circle
from services.alerts.service.escalating import Escalating
from shared.contracts.alerts import DeliverySettled
from shared.errors import Transient
from shared.work import Worker
from tests.alerts.conftest import NOW, Bench, activity, contract
from tests.alerts.test_notices import drifted, filled, receipt
from tests.alerts.test_preferences import wish
from tests.alerts.test_routes import Client, client

__all__ = ["client"]

ACCOUNT, OTHER = UUID(int=1), UUID(int=2)
KINDS = ("activity", "positions_drifted", "order_filled", "receipt", "digest.daily", "test")
BY_SYMBOL = Inhibition("positions_drifted", "activity", ("symbol",), 60)
BY_ACCOUNT = Inhibition("positions_drifted", "order_filled", ("account",), 60)


def fires(minutes_ago: int = 0, symbol: str | None = "AAPL", account: UUID | None = ACCOUNT) -> Firing:
    return Firing("positions_drifted", symbol, account, NOW - timedelta(minutes=minutes_ago))


@pytest.mark.parametrize(
    ("rule", "firing", "ring", "held"),
    [
        (BY_SYMBOL, fires(), Ring("activity", "AAPL"), True),
        (BY_SYMBOL, fires(), Ring("activity", "MSFT"), False),
        (BY_SYMBOL, fires(symbol=None), Ring("activity", None), False),
        (BY_SYMBOL, fires(59), Ring("activity", "AAPL"), True),
        (BY_SYMBOL, fires(60), Ring("activity", "AAPL"), False),
        (BY_SYMBOL, fires(), Ring("receipt", "AAPL"), False),
        (BY_ACCOUNT, fires(), Ring("order_filled", "MSFT", None, ACCOUNT), True),
        (BY_ACCOUNT, fires(), Ring("order_filled", "AAPL", None, OTHER), False),
        (Inhibition("positions_drifted", ANY, (), 60), fires(), Ring("receipt"), True),
        (Inhibition("positions_drifted", ANY, (), 60), fires(), Ring("order_rejected"), False),
        (Inhibition("positions_drifted", "order_rejected", (), 60), fires(), Ring("order_rejected"), True),
        (Inhibition("positions_drifted", ANY, (), 60), fires(), Ring("positions_drifted", "AAPL"), False),
        (Inhibition("positions_drifted", ANY, (), 60), fires(), Ring("digest.daily"), False),
        (Inhibition("positions_drifted", ANY, (), 60), fires(), Ring("test"), False),
        (Inhibition("receipt", ANY, (), 60), fires(), Ring("activity"), False),
    ],
    ids=[
        *("same_symbol", "other_symbol", "no_symbol", "still", "no_more", "other_target", "same_account"),
        *("other_account", "anything", "critical", "critical_by_name", "itself", "digest", "test", "other_source"),
    ],
)
def test_what_holds_back_what(rule: Inhibition, firing: Firing, ring: Ring, held: bool) -> None:
    assert rule.holds(firing, ring, NOW) is held


@given(
    st.lists(
        st.builds(
            Inhibition,
            st.sampled_from(KINDS[:4]),
            st.sampled_from((*KINDS, ANY)),
            st.lists(st.sampled_from(get_args(Equal)), unique=True).map(tuple),
            st.integers(1, 1440),
        ),
        max_size=6,
    )
)
def test_without_a_circle_something_of_what_fires_is_always_told(rules: list[Inhibition]) -> None:
    """Everything fires at once, about the same: at least one source is held back by none."""
    firing = [Firing(kind, "AAPL", ACCOUNT, NOW) for kind in {rule.source for rule in rules}]
    told = [
        one.kind
        for one in firing
        if not any(rule.holds(by, Ring(one.kind, "AAPL", None, ACCOUNT), NOW) for rule in rules for by in firing)
    ]
    assert not rules or told or circle(rules)


def test_a_circle_names_those_that_are_in_it() -> None:
    a, b, c = "activity", "receipt", "order_filled"
    round_about = [Inhibition(a, b, (), 1), Inhibition(b, c, (), 1), Inhibition(c, a, (), 1)]
    assert circle(round_about) == sorted([a, b, c])
    assert circle(round_about[:2]) == []
    assert circle([Inhibition(a, ANY, (), 1), Inhibition(b, ANY, (), 1)]) == [a, b]
    assert circle([Inhibition(a, ANY, (), 1), Inhibition(min(CRITICAL), ANY, (), 1)]) == []


async def somebody(bench: Bench, *inhibitions: Inhibition, **wishes: Any) -> UUID:
    user = await bench.user("AAPL", "MSFT")
    await bench.channel(user)
    await wish(bench, user, Wishes(inhibitions=inhibitions, **wishes))
    return user


async def ends(bench: Bench, table: str = "deliveries") -> list[tuple[str, str | None]]:
    return [(row["status"], row["last_error"]) for row in await bench.rows(f"{table} order by created_at")]


HELD = "held back by positions_drifted, same symbol, until you acknowledge it or 2025-06-02 15:30 UTC"


async def test_an_alert_is_held_back_while_its_symbols_positions_have_drifted_and_the_log_says_why(
    bench: Bench,
) -> None:
    user = await somebody(bench, BY_SYMBOL)
    await bench.handle(bench.telling.tell, [drifted(user)])
    events = await bench.tell(activity(), activity(symbol="MSFT"))
    rows = {row["alert_id"]: row for row in await bench.rows("deliveries")}
    told = {row["symbol"]: rows[row["alert_id"]] for row in await bench.rows("alerts")}
    assert (told["AAPL"]["status"], told["AAPL"]["last_error"]) == ("suppressed", HELD)
    assert told["MSFT"]["status"] == "pending"
    assert [event.status for event in events if isinstance(event, DeliverySettled)] == ["suppressed"]
    await bench.deliver()
    assert len(bench.discord.sent) == 2
    bench.clock.advance(3600)
    await bench.tell(activity(contract(score=95)))
    await bench.deliver()
    assert len(bench.discord.sent) == 3


async def test_what_is_acknowledged_fires_no_more_and_what_fires_for_another_holds_nothing_back(bench: Bench) -> None:
    user, other = await somebody(bench, BY_SYMBOL), await somebody(bench, BY_SYMBOL)
    await bench.handle(bench.telling.tell, [drifted(user)])
    (notice,) = await bench.rows("notices")
    await bench.door.run(lambda tx: bench.engagement.acknowledge(user, notice["notice_id"], tx))
    await bench.tell(activity())
    assert await ends(bench) == [("pending", None)] * 2
    await bench.handle(bench.telling.tell, [drifted(other)])
    await bench.tell(activity(contract(score=95)))
    assert sorted(row["user_id"] for row in await bench.rows("deliveries where ring = 2 and status = 'pending'")) == [
        user
    ]


async def test_an_account_is_the_same_for_notices(bench: Bench) -> None:
    user = await somebody(bench, BY_ACCOUNT)
    drift = drifted(user)
    await bench.handle(bench.telling.tell, [drift, filled(user, account_id=drift.account_id), filled(user)])
    kinds = {row["notice_id"]: row["kind"] for row in await bench.rows("notices")}
    found = sorted((kinds[row["notice_id"]], row["status"]) for row in await bench.rows("notice_deliveries"))
    assert found == [("order_filled", "pending"), ("order_filled", "suppressed"), ("positions_drifted", "pending")]


async def test_an_alert_holds_back_a_notice_for_as_long_as_it_changes(bench: Bench) -> None:
    user = await somebody(bench, Inhibition("activity", "receipt", (), 30))
    await bench.tell(activity())
    bench.clock.advance(1200)
    await bench.tell(activity(contract(score=81)))
    bench.clock.advance(1200)
    await bench.handle(bench.telling.tell, [receipt(user)])
    bench.clock.advance(600)
    await bench.handle(bench.telling.tell, [receipt(user)])
    assert [status for status, _ in await ends(bench, "notice_deliveries")] == ["suppressed", "pending"]


@pytest.mark.parametrize("waits", ["quiet", "retry"])
async def test_what_waits_is_judged_anew_when_it_goes_out(bench: Bench, waits: str) -> None:
    quiet = Quiet(time(14), time(15)) if waits == "quiet" else None
    user = await somebody(bench, BY_SYMBOL, BY_ACCOUNT, quiet=quiet)
    drift = drifted(user)
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [filled(user, account_id=drift.account_id)])
    if waits == "retry":
        bench.discord.errors = [Transient("away")] * 2
        await bench.deliver()
        bench.discord.sent.clear()
    await bench.handle(bench.telling.tell, [drift])
    bench.clock.advance(1800)
    for _ in range(2):  # what goes to one target goes one after the other
        await bench.deliver()
    assert [message.title[:14] for message in bench.discord.sent] == ["Your positions"]
    for table in ("deliveries", "notice_deliveries"):
        (held,) = await bench.rows(f"{table} where status = 'suppressed'")
        assert held["last_error"].startswith("held back by positions_drifted")


async def test_what_fails_over_or_escalates_is_held_back_too(bench: Bench) -> None:
    user = await bench.user("AAPL")
    await bench.channel(user)
    await bench.channel(user, "email", None)
    await wish(
        bench, user, Wishes(inhibitions=(BY_ACCOUNT,), turns=("discord", "email"), escalations={"order_filled": 5})
    )
    drift = drifted(user)
    await bench.handle(bench.telling.tell, [filled(user, account_id=drift.account_id)])
    await bench.deliver()
    await bench.handle(bench.telling.tell, [drift])
    bench.clock.advance(300)
    handing_on = Worker(Escalating(bench.router).work(), bench.door, bench.clock)
    await handing_on.turn()
    await handing_on.idle()
    (row,) = await bench.rows("notice_deliveries where because is not null and channel = 'email' and escalated")
    assert row["status"] == "suppressed"
    assert row["last_error"].startswith("held back by positions_drifted, same account")


async def test_inhibitions_are_kept_and_shown_and_those_that_make_no_sense_refused(client: Client) -> None:
    user = uuid4()
    path = f"/api/alerts/{user}/preferences"
    one: dict[str, Any] = {"source": "order_flagged", "target": "order_filled", "equal": ["account"], "minutes": 60}
    back = {"source": "order_filled", "target": "order_flagged", "equal": [], "minutes": 5}
    assert (await client("PUT", path, user, json={"inhibitions": [one]})).json()["inhibitions"] == [one]
    for wrong, why in (
        ([{**one, "source": "*"}], "the source is no *"),
        ([{**one, "target": one["source"]}], "does not hold itself back"),
        ([one, one], "more than one inhibition of order_filled by order_flagged"),
        ([one, back], "would hold each other back, and none would be told: order_filled, order_flagged"),
        ([{**one, "target": "digest.daily"}], "digest.daily neither holds"),
        ([{**one, "equal": ["colour"]}], "equal"),
        ([{**one, "equal": ["symbol", "symbol"]}], "once"),
        ([{**one, "minutes": 0}], "minutes"),
        ([{**one, "minutes": 1441}], "minutes"),
        ([{"source": "receipt", "minutes": 5}], "target"),
    ):
        answer = await client("PUT", path, user, json={"inhibitions": wrong})
        assert (answer.status_code, why in answer.text) == (422, True), answer.text
    assert (await client("GET", path, user)).json()["inhibitions"] == [one]
