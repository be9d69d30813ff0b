"""Silences: what they name is not told while they run, and the log says so."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.domain.routing import Ring, Silence
from services.alerts.service.silences import MAX_SILENCES
from tests.alerts.conftest import NOW, activity
from tests.alerts.test_notices import receipt
from tests.alerts.test_routes import Client, client

__all__ = ["client"]

RULE = uuid4()


def at(hours: float) -> str:
    return (NOW + timedelta(hours=hours)).isoformat()


def body(**fields: Any) -> dict[str, Any]:
    return {"ends_at": at(1), "comment": "earnings", **fields}


async def post(client: Client, user: UUID, **fields: Any) -> Any:
    return await client("POST", f"/api/alerts/{user}/silences", user, json=body(**fields))


@given(
    st.sampled_from([None, "activity", "order_rejected"]),
    st.sampled_from([None, "AAPL", "MSFT"]),
    st.sampled_from([None, RULE]),
    st.sampled_from([None, True, False]),
    st.sampled_from([Ring("activity", "AAPL", RULE), Ring("order_rejected"), Ring("receipt")]),
)
def test_all_that_a_silence_names_must_be_met(
    kind: str | None, symbol: str | None, rule: UUID | None, critical: bool | None, ring: Ring
) -> None:
    silence = Silence(kind, symbol, rule, critical, NOW)
    met = [
        kind is None or kind == ring.kind,
        symbol is None or symbol == ring.symbol,
        rule is None or rule == ring.rule_id,
        critical is None or critical == (ring.kind == "order_rejected"),
    ]
    assert silence.covers(ring) is all(met)
    assert silence.everything is (kind is None and symbol is None and rule is None and critical is None)


async def test_a_silence_holds_from_its_start_to_its_end_for_what_it_names(client: Client) -> None:
    bench = client.bench
    user, other = await bench.user("AAPL", "MSFT"), await bench.user("AAPL")
    await bench.channel(user)
    await bench.channel(other)
    answer = await post(client, user, symbol="aapl", starts_at=at(1), ends_at=at(2))
    assert answer.status_code == 201, answer.text
    for hour in range(3):
        bench.clock.now = NOW + timedelta(hours=hour)
        session = NOW.date() + timedelta(days=hour)
        await bench.tell(activity(session=session), activity(symbol="MSFT", session=session))
    told = [
        ((row["session"] - NOW.date()).days, row["symbol"], row["status"])
        for row in await bench.rows("deliveries join alerts using (alert_id, session)")
        if row["user_id"] == user
    ]
    assert sorted(told) == [
        (0, "AAPL", "pending"),
        (0, "MSFT", "pending"),
        (1, "AAPL", "suppressed"),
        (1, "MSFT", "pending"),
        (2, "AAPL", "pending"),
        (2, "MSFT", "pending"),
    ]
    log = (await client("GET", f"/api/alerts/{user}/deliveries", user)).json()["deliveries"]
    (silenced,) = [one for one in log if one["state"] == "suppressed"]
    assert silenced["reason"] == "silenced until 2025-06-02 16:30 UTC"


async def test_a_silence_that_is_ended_holds_no_more_and_stays_in_the_list(client: Client) -> None:
    bench = client.bench
    user = await bench.user()
    await bench.channel(user)
    silence = (await post(client, user, all=True)).json()
    await bench.handle(bench.telling.tell, [receipt(user)])
    path = f"/api/alerts/{user}/silences/{silence['id']}"
    bench.clock.advance(1)
    assert (await client("DELETE", path, user)).status_code == 204
    assert (await client("DELETE", path, user)).status_code == 404
    await bench.handle(bench.telling.tell, [receipt(user)])
    assert sorted(row["status"] for row in await bench.rows("notice_deliveries")) == ["pending", "suppressed"]
    (listed,) = (await client("GET", f"/api/alerts/{user}/silences", user)).json()
    assert datetime.fromisoformat(listed["ends_at"]) == NOW + timedelta(seconds=1)
    assert (listed["author"], listed["comment"]) == (str(user), "earnings")
    assert [row["topic"] for row in await bench.rows("outbox")].count("api.audit") == 3  # the channel's is one


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "say `all`"),
        ({"all": True, "kind": "receipt"}, "say `all`"),
        ({"all": True, "ends_at": at(-1)}, "past"),
        ({"all": True, "starts_at": at(2)}, "after it starts"),
        ({"all": True, "ends_at": at(24 * 367)}, "a year"),
        ({"all": True, "ends_at": "2025-06-02T15:30:00"}, "timezone"),
        ({"all": True, "comment": ""}, "comment"),
        ({"severity": "awful"}, "severity"),
        ({"kind": "*"}, "kind"),
        ({"symbol": "not a symbol"}, "symbol"),
        ({"all": True, "surprise": 1}, "surprise"),
    ],
)
async def test_a_silence_that_makes_no_sense_is_refused_and_the_error_says_why(
    client: Client, fields: dict[str, Any], why: str
) -> None:
    user = uuid4()
    answer = await post(client, user, **fields)
    assert answer.status_code == 422
    assert why in answer.text
    assert (await client("GET", f"/api/alerts/{user}/silences", user)).json() == []


async def test_silences_have_a_limit_and_users_reach_only_their_own(client: Client) -> None:
    user = uuid4()
    await client.bench.execute(
        f"""
        insert into silences (silence_id, user_id, starts_at, ends_at, author, comment, created_at)
        select gen_random_uuid(), '{user}', '2025-06-01 00\\:00Z', '2025-07-01 00\\:00Z', 'x', 'x', now()
        from generate_series(1, {MAX_SILENCES})"""
    )
    assert (await post(client, user, all=True)).status_code == 409
    thief, silence = uuid4(), uuid4()
    for method, path in (("GET", ""), ("POST", ""), ("DELETE", f"/{silence}")):
        more = {"json": body(all=True)} if method == "POST" else {}
        assert (await client(method, f"/api/alerts/{user}/silences{path}", thief, **more)).status_code == 403
