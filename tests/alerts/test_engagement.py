"""What users do with what they are told: opened, clicked, counted by type and channel; and notices as events."""

from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest

from services.alerts.domain.clicks import Click, Clicks
from services.alerts.domain.links import LinkRefused
from services.alerts.domain.text import Message, context
from services.alerts.domain.words import Words
from services.alerts.ports import ChannelGone
from services.alerts.templates import render_packaged
from shared.contracts.alerts import NoticeDeliverySettled, NoticeRaised
from shared.contracts.base import Event
from shared.settings import SharedSettings
from tests.alerts.conftest import NOW, Bench, activity, contract
from tests.alerts.test_notices import filled, receipt
from tests.alerts.test_routes import Client, client

__all__ = ["client"]


async def told(bench: Bench, kind: type[Event]) -> list[Event]:
    """The events of a kind that wait in the outbox."""
    types = [(bytes(row["headers"]), row["value"]) for row in await bench.rows("outbox")]
    return [kind.from_bytes(value, id=uuid4(), time=NOW) for headers, value in types if kind.type.encode() in headers]


async def test_a_notice_is_told_once_as_an_event(bench: Bench) -> None:
    user, order = await bench.user(), uuid4()
    parts = [filled(user, order_id=order, fill_id=str(number), whole=False) for number in range(2)]
    (first,) = await bench.handle(bench.telling.tell, parts)
    assert isinstance(first, NoticeRaised)
    assert (first.user_id, first.kind, first.title) == (
        user,
        "order_part_filled",
        "Bought 10 AAPL at 100.02 (paper)",
    )
    assert [row["notice_id"] for row in await bench.rows("notices")] == [first.notice_id]
    assert await bench.handle(bench.telling.tell, parts) == []


async def test_how_a_notices_delivery_ended_is_told_for_each_channel(bench: Bench) -> None:
    user = await bench.user()
    await bench.channel(user)
    await bench.channel(user, "email", None)
    await bench.handle(bench.telling.tell, [receipt(user), receipt(user)])
    bench.discord.errors = [ChannelGone("the webhook does not exist any more")]
    for _ in range(2):  # one at a time to an address
        await bench.deliver()
    ends = await told(bench, NoticeDeliverySettled)
    assert sorted((one.channel, one.status) for one in ends if isinstance(one, NoticeDeliverySettled)) == [
        ("discord", "failed"),
        ("discord", "failed"),
        ("email", "sent"),
        ("email", "sent"),
    ]


async def test_stats_count_alerts_and_notices_by_type_and_channel_in_a_window(client: Client) -> None:
    bench = client.bench
    user = await bench.user("AAPL", "MSFT")
    await bench.channel(user)
    await bench.handle(bench.telling.tell, [receipt(user)])
    bench.clock.advance(10 * 86_400)
    await bench.tell(activity(symbol="AAPL"), activity(symbol="MSFT"))
    await bench.handle(bench.telling.tell, [receipt(user), receipt(user, renewal=True)])
    await bench.deliver()
    alert = (await bench.rows("alerts"))[0]["alert_id"]
    notice = next(row["notice_id"] for row in await bench.rows("notices") if row["kind"] == "renewed")
    for subject in (alert, notice):
        first = await client("POST", f"/api/alerts/{subject}/opened", user)
        bench.clock.advance(1)
        assert (await client("POST", f"/api/alerts/{subject}/opened", user)).json() == first.json()
    assert (await client("POST", f"/api/alerts/{alert}/opened", uuid4())).status_code == 404

    week = (await client("GET", f"/api/alerts/{user}/stats?days=7", user)).json()
    assert (week["days"], week["recent"], week["open_rate"]) == (7, 4, 0.5)
    assert {kind: (one["total"], one["opened"], one["open_rate"]) for kind, one in week["types"].items()} == {
        "activity": (2, 1, 0.5),
        "receipt": (1, 0, 0.0),
        "renewed": (1, 1, 1.0),
    }
    month = (await client("GET", f"/api/alerts/{user}/stats", user)).json()
    assert (month["days"], month["recent"], month["types"]["receipt"]["total"]) == (30, 5, 2)
    assert (month["channels"]["discord"]["total"], month["channels"]["discord"]["opened"]) == (5, 2)
    assert sum(month["channels"]["discord"]["states"].values()) == 5
    assert (await client("GET", f"/api/alerts/{user}/stats?days=0", user)).status_code == 422
    nobody = uuid4()
    empty = (await client("GET", f"/api/alerts/{nobody}/stats", nobody)).json()
    assert (empty["recent"], empty["open_rate"], empty["types"], empty["channels"]) == (0, None, {}, {})


async def test_alerts_are_listed_by_type_and_symbol_and_notices_by_kind(client: Client) -> None:
    bench = client.bench
    user = await bench.user("AAPL", "MSFT")
    body = {"name": "all", "symbols": ["AAPL"], "min_score": 0}
    assert (await client("POST", f"/api/alerts/{user}/rules", user, json=body)).status_code == 201
    await bench.tell(activity(symbol="AAPL"), activity(symbol="MSFT"))
    await bench.handle(bench.telling.tell, [receipt(user), receipt(user, renewal=True)])

    async def listed(query: str) -> list[tuple[str, str]]:
        answer = await client("GET", f"/api/alerts/{user}?{query}", user)
        return sorted((one["rule"], one["symbol"]) for one in answer.json()["alerts"])

    assert await listed("type=watchlist") == [("watchlist", "AAPL"), ("watchlist", "MSFT")]
    assert await listed("type=rule") == [("all", "AAPL")]
    assert await listed("symbol=msft") == [("watchlist", "MSFT")]
    assert (await client("GET", f"/api/alerts/{user}?type=other", user)).status_code == 422
    renewed = (await client("GET", f"/api/alerts/{user}/notices?kind=renewed", user)).json()["notices"]
    assert [one["kind"] for one in renewed] == ["renewed"]


async def test_a_mails_link_counts_a_click_and_leads_to_our_page_about_it(client: Client) -> None:
    bench = client.bench
    user = await bench.user("AAPL")
    await bench.channel(user, "email", None)
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [receipt(user)])
    await bench.deliver()
    token = ""
    for message, table, key in zip(bench.email.sent, ("alerts", "notices"), ("alert_id", "notice_id"), strict=True):
        assert message.link is not None
        token = parse_qs(urlsplit(message.link).query)["token"][0]
        address = await bench.door.run(lambda tx, token=token: bench.engagement.click(token, tx))
        (row,) = await bench.rows(table)
        assert address == f"https://openbell.example/app/alerts/{row[key]}"
        assert row["clicked_at"] == row["opened_at"] == NOW
    bench.clock.advance(60)
    await bench.door.run(lambda tx: bench.engagement.click(token, tx))
    assert (await bench.rows("notices"))[0]["clicked_at"] == NOW
    assert (await client("GET", f"/api/alerts/{user}/stats", user)).json()["types"]["activity"]["clicked"] == 1


async def test_a_click_is_followed_by_the_route_and_leads_nowhere_but_home(client: Client) -> None:
    ours = Clicks("another-secret", "https://elsewhere.example", "/evil/{id}")
    token = parse_qs(urlsplit(ours.link(uuid4(), uuid4()) or "").query)["token"][0]
    answer = await client("GET", "/links/click", uuid4(), params={"token": token})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "LINK_REFUSED")
    secret = SharedSettings().identity_secret.get_secret_value()
    user, subject = uuid4(), uuid4()
    theirs = Clicks(secret, "https://elsewhere.example", "/evil/{id}").link(user, subject) or ""
    answer = await client("GET", "/links/click", user, params={"token": theirs.partition("token=")[2]})
    assert (answer.status_code, answer.headers["location"]) == (303, "http://127.0.0.1:8100/")


def test_a_mail_carries_the_link_as_text_and_as_html() -> None:
    message = Message(
        delivery_id=uuid4(), target="a@example.org", title="t", lines=("l",), notes=(), simulated=False, at=NOW
    )
    linked = replace(message, link="https://openbell.example/links/click?token=a.b.c")
    for kind in ("alert", "message"):
        fields = {"symbol": "AAPL", "contracts": [], "more": 0}
        mail = render_packaged("email", kind, {**fields, **context(linked)}, Words())
        assert "Open it in Openbell: https://openbell.example/links/click?token=a.b.c" in mail.text
        assert 'href="https://openbell.example/links/click?token=a.b.c"' in (mail.html or "")
        bare = render_packaged("email", kind, {**fields, **context(message)}, Words())
        assert "Open it" not in bare.text + (bare.html or "")


def test_a_link_tampered_with_is_refused() -> None:
    clicks = Clicks("x" * 32, "https://openbell.example", "/app/{id}")
    link = clicks.link(uuid4(), uuid4()) or ""
    token = link.partition("token=")[2]
    head, body, signature = token.split(".")
    for bad in (token[:-2], f"{head}.{body[:-2]}AA.{signature}", "", "x", f"{head}.{body}."):
        with pytest.raises(LinkRefused):
            clicks.read(bad)
    with pytest.raises(LinkRefused):
        Clicks("y" * 32, "https://openbell.example", None).read(token)
    assert clicks.address(Click(uuid4(), subject := uuid4())) == f"https://openbell.example/app/{subject}"
    assert Clicks("x" * 32, "https://openbell.example", None).link(uuid4(), uuid4()) is None


@pytest.mark.parametrize(
    "page", ["//evil.example/{id}", "https://evil.example", "/../{id}", "/a?b={id}", "app", "/\\evil"]
)
def test_a_page_that_is_not_a_path_of_ours_stops_the_start(page: str) -> None:
    with pytest.raises(ValueError, match="OPENBELL_ALERTS_OPEN_PAGE"):
        Clicks("x" * 32, "https://openbell.example", page)


async def test_what_was_acknowledged_counts_as_opened_once_and_is_its_users_own(client: Client) -> None:
    bench = client.bench
    user = await bench.user("AAPL")
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [receipt(user)])
    (alert,), (notice,) = await bench.rows("alerts"), await bench.rows("notices")
    for subject in (alert["alert_id"], notice["notice_id"]):
        assert (await client("POST", f"/api/alerts/{subject}/acknowledged", uuid4())).status_code == 404
        first = await client("POST", f"/api/alerts/{subject}/acknowledged", user)
        bench.clock.advance(1)
        again = await client("POST", f"/api/alerts/{subject}/acknowledged", user)
        assert (first.status_code, again.json()) == (200, first.json())
    types = (await client("GET", f"/api/alerts/{user}/stats", user)).json()["types"]
    assert [(one["opened"], one["acknowledged"]) for one in types.values()] == [(1, 1), (1, 1)]


async def test_a_second_ring_asks_to_be_acknowledged_again(bench: Bench) -> None:
    user = await bench.user("AAPL")
    await bench.tell(activity(contract(score=70)))
    (row,) = await bench.rows("alerts")
    await bench.door.run(lambda tx: bench.engagement.acknowledge(user, row["alert_id"], tx))
    assert [one["acknowledged_at"] for one in await bench.rows("alerts")] == [NOW]
    await bench.tell(activity(contract(score=95), as_of=NOW + timedelta(seconds=60)))
    assert [one["acknowledged_at"] for one in await bench.rows("alerts")] == [None]


async def test_a_second_ring_asks_to_be_opened_again_and_keeps_the_click(bench: Bench) -> None:
    user = await bench.user("AAPL")
    await bench.tell(activity(contract(score=70)))
    (row,) = await bench.rows("alerts")
    token = (bench.clicks.link(user, row["alert_id"]) or "").partition("token=")[2]
    await bench.door.run(lambda tx: bench.engagement.click(token, tx))
    bench.clock.advance(60)
    await bench.tell(activity(contract(score=95), as_of=NOW + timedelta(seconds=60)))
    (row,) = await bench.rows("alerts")
    assert (row["opened_at"], row["clicked_at"]) == (None, NOW)
