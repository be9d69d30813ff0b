"""The routes of alerts, over the app that the service serves."""

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast, get_args
from uuid import UUID, uuid4

import httpx
import pytest

from services.alerts.main import build
from shared.contracts.alerts import Channel
from shared.identity import HEADER, Identity, Signer
from shared.service import Environment
from shared.settings import SharedSettings
from tests.alerts.conftest import NOW, WEBHOOK, Bench, activity, contract

CHANNELS: tuple[Channel, ...] = get_args(Channel)


class Client:
    def __init__(self, bench: Bench, http: httpx.AsyncClient, signer: Signer) -> None:
        self.bench, self._http, self._signer = bench, http, signer

    async def __call__(self, method: str, path: str, user: UUID, **more: Any) -> httpx.Response:
        headers = more.pop("headers", {})
        token = self._signer.sign(Identity(user, more.pop("role", "user")), audience="alerts", request_id="r1")
        return await self._http.request(method, path, headers={HEADER: token, **headers}, **more)


@pytest.fixture
async def client(bench: Bench, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """The service as main builds it, not started: it serves HTTP without Kafka."""
    monkeypatch.setenv("OPENBELL_ALERTS_SMTP_HOST", "127.0.0.1")
    monkeypatch.setenv("OPENBELL_ALERTS_MAX_RULES", "3")
    monkeypatch.setenv("OPENBELL_ALERTS_OUTWARD_BASE", "http://127.0.0.1:9")
    settings = SharedSettings(database_url=database_url)
    service = build(Environment(settings, bench.clock))
    signer = Signer(settings.identity_secret.get_secret_value(), bench.clock)
    transport = httpx.ASGITransport(app=cast("Any", service.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://alerts") as http:
        yield Client(bench, http, signer)
    await service.close()


async def test_a_users_alerts_come_newest_first_in_pages_with_their_deliveries(client: Client) -> None:
    bench = client.bench
    user = await bench.user("AAPL", "MSFT", "TSLA")
    await bench.channel(user)
    for symbol in ("AAPL", "MSFT", "TSLA"):
        await bench.tell(activity(symbol=symbol, simulated=symbol == "TSLA"))
        bench.clock.advance(1)
        await bench.deliver()
    first = (await client("GET", f"/api/alerts/{user}?limit=2", user)).json()
    assert [one["symbol"] for one in first["alerts"]] == ["TSLA", "MSFT"]
    assert (first["total"], first["unopened"]) == (3, 3)
    assert first["alerts"][0]["simulated"] is True
    assert "Simulated" in first["alerts"][0]["note"]
    assert first["alerts"][1]["note"] is None
    assert [one["status"] for one in first["alerts"][1]["deliveries"]] == ["sent"]
    answer = await client("GET", f"/api/alerts/{user}", user, params={"limit": 2, "before": first["next"]})
    second = answer.json()
    assert [one["symbol"] for one in second["alerts"]] == ["AAPL"]
    assert second["next"] is None


async def test_what_is_no_cursor_is_refused(client: Client) -> None:
    user = uuid4()
    for before in ("yesterday", "2025-06-02T14:30:00~" + str(user), "2025-99-02T14:30:00+00:00~" + str(user)):
        answer = await client("GET", f"/api/alerts/{user}", user, params={"before": before})
        assert answer.status_code == 422, before
    assert (await client("GET", f"/api/alerts/{user}?limit=201", user)).status_code == 422


async def test_an_alert_is_opened_once_and_counted(client: Client) -> None:
    user = await client.bench.user("AAPL")
    await client.bench.tell(activity())
    alert_id = (await client("GET", f"/api/alerts/{user}", user)).json()["alerts"][0]["id"]
    first = await client("POST", f"/api/alerts/{user}/{alert_id}/opened", user)
    client.bench.clock.advance(30)
    again = await client("POST", f"/api/alerts/{user}/{alert_id}/opened", user)
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    stats = (await client("GET", f"/api/alerts/{user}/stats", user)).json()
    assert (stats["total"], stats["unopened"], stats["notifications"]) == (1, 0, 1)
    assert (await client("POST", f"/api/alerts/{user}/{uuid4()}/opened", user)).status_code == 404


async def test_a_webhook_is_never_shown_again(client: Client) -> None:
    user = await client.bench.user()
    answer = await client("PUT", f"/api/alerts/{user}/channels/discord", user, json={"target": WEBHOOK})
    assert answer.status_code == 200
    listed = await client("GET", f"/api/alerts/{user}/channels", user)
    assert "s3cret" not in answer.text + listed.text
    assert listed.json()[0]["target"].endswith("/api/webhooks/…5678/…")
    assert (await client("DELETE", f"/api/alerts/{user}/channels/discord", user)).status_code == 204
    assert (await client("GET", f"/api/alerts/{user}/channels", user)).json() == []
    assert (await client("DELETE", f"/api/alerts/{user}/channels/discord", user)).status_code == 404


async def test_a_refused_webhook_is_not_repeated_in_the_error(client: Client) -> None:
    user = uuid4()
    bad = WEBHOOK.replace("discord.com", "evil.example")
    answer = await client("PUT", f"/api/alerts/{user}/channels/discord", user, json={"target": bad})
    assert answer.status_code == 422
    assert "s3cret" not in answer.text
    pigeon = await client("PUT", f"/api/alerts/{user}/channels/pigeon", user, json={})
    assert pigeon.status_code in {400, 404, 422}


async def test_mail_goes_to_the_address_of_sign_up_when_none_is_given(client: Client) -> None:
    user = await client.bench.user()
    answer = await client("PUT", f"/api/alerts/{user}/channels/email", user, json={})
    assert answer.json()["target"] == f"{user.hex[:8]}@example.org"


async def test_rules_are_added_listed_and_removed_and_told_to_the_auditor(client: Client) -> None:
    user = await client.bench.user(settings={"min_score": 72.5, "min_premium_usd": Decimal(5000)})
    body = {"name": "big calls", "symbols": ["tsla", "AAPL", "AAPL"], "min_score": 80, "min_premium_usd": "1000000"}
    key = {"idempotency-key": "k1"}
    added = await client("POST", f"/api/alerts/{user}/rules", user, json=body, headers=key)
    again = await client("POST", f"/api/alerts/{user}/rules", user, json=body, headers=key)
    assert added.status_code == 201
    assert added.json() == again.json()
    assert added.json()["symbols"] == ["AAPL", "TSLA"]
    watchlist, own = (await client("GET", f"/api/alerts/{user}/rules", user)).json()
    assert (watchlist["kind"], watchlist["min_score"], watchlist["min_premium_usd"]) == ("watchlist", 72.5, "5000")
    assert own == added.json()
    assert (await client("DELETE", f"/api/alerts/{user}/rules/{own['id']}", user)).status_code == 204
    assert (await client("DELETE", f"/api/alerts/{user}/rules/{own['id']}", user)).status_code == 404
    told = [row["topic"] for row in await client.bench.rows("outbox")]
    assert told == ["api.audit", "api.audit"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "x" * 81},
        {"name": "two\nlines"},
        {"symbols": ["not a symbol"]},
        {"symbols": ["A"] * 201},
        {"min_score": 101},
        {"min_score": "NaN"},
        {"min_premium_usd": -1},
        {"min_premium_usd": "Infinity"},
        {"surprise": 1},
    ],
)
async def test_a_rule_that_makes_no_sense_is_refused(client: Client, change: dict[str, Any]) -> None:
    user = uuid4()
    answer = await client("POST", f"/api/alerts/{user}/rules", user, json={"name": "r", **change})
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/stats"),
        ("GET", "/channels"),
        ("GET", "/rules"),
        ("PUT", "/channels/discord"),
        ("DELETE", "/channels/discord"),
        ("POST", "/rules"),
        ("DELETE", "/rules/7f5b1d0e-0000-4000-8000-000000000000"),
        ("POST", "/7f5b1d0e-0000-4000-8000-000000000000/opened"),
    ],
)
async def test_users_reach_only_their_own(client: Client, method: str, path: str) -> None:
    body = {"name": "r"} if path == "/rules" and method == "POST" else {"target": WEBHOOK}
    more = {"json": body} if method in {"POST", "PUT"} else {}
    answer = await client(method, f"/api/alerts/{uuid4()}{path}", uuid4(), **more)
    assert answer.status_code == 403


async def test_an_administrator_reaches_everybodys(client: Client) -> None:
    assert (await client("GET", f"/api/alerts/{uuid4()}", uuid4(), role="admin")).status_code == 200


async def test_another_users_alert_cannot_be_opened_through_ones_own_path(client: Client) -> None:
    await client.bench.user("AAPL")
    await client.bench.tell(activity(contract("A", 90), as_of=NOW + timedelta(seconds=1)))
    (row,) = await client.bench.rows("alerts")
    thief = uuid4()
    answer = await client("POST", f"/api/alerts/{thief}/{row['alert_id']}/opened", thief)
    assert answer.status_code == 404


async def test_a_test_of_a_channel_answers_the_id_that_the_notices_show(client: Client) -> None:
    user = await client.bench.user()
    channel = (await client("PUT", f"/api/alerts/{user}/channels/discord", user, json={"target": WEBHOOK})).json()
    path = f"/api/alerts/{user}/channels/discord/{channel['id']}/test"
    sent = await client("POST", path, user)
    assert sent.status_code == 202
    (notice,) = (await client("GET", f"/api/alerts/{user}/notices", user)).json()["notices"]
    assert notice["kind"] == "test"
    assert [one["id"] for one in notice["deliveries"]] == [sent.json()["delivery_id"]]
    assert (await client("POST", path, uuid4())).status_code == 403


async def test_every_path_of_every_channel_leads_to_its_handler(client: Client) -> None:
    target = "/0123456789abcdef"
    paths = [("PUT", ""), ("DELETE", ""), ("DELETE", target), ("POST", f"{target}/test"), ("POST", f"{target}/secret")]
    for channel in CHANNELS:
        for method, path in [*paths, ("POST", "/confirmation"), ("GET", "/key")]:
            answer = await client(method, f"/api/alerts/{uuid4()}/channels/{channel}{path}", uuid4(), json={})
            assert answer.status_code == 403, (method, channel, path)  # somebody else's; what has no handler is 404


async def test_a_webhook_is_set_given_another_secret_tested_and_removed(client: Client) -> None:
    user = await client.bench.user()
    at = f"/api/alerts/{user}/channels/webhook"
    made = await client("PUT", at, user, json={"target": "http://127.0.0.1:9/hook"})
    assert made.status_code == 200, made.text
    hook: dict[str, Any] = made.json()
    again = (await client("POST", f"{at}/{hook['id']}/secret", user)).json()
    assert again["id"] == hook["id"]
    assert again["secret"] not in {None, hook["secret"]}
    assert (await client("POST", f"{at}/{hook['id']}/test", user)).status_code == 202
    assert (await client("DELETE", f"{at}/{hook['id']}", user)).status_code == 204
    assert (await client("DELETE", at, user)).status_code == 404


async def test_what_is_no_webhook_has_no_secret_and_what_is_not_webpush_no_key(client: Client) -> None:
    user = await client.bench.user()
    at = f"/api/alerts/{user}/channels"
    assert (await client("POST", f"{at}/discord/0123456789abcdef/secret", user)).status_code == 404
    assert (await client("GET", f"{at}/fcm/key", user)).status_code == 404


async def test_a_body_nested_without_end_is_refused(client: Client) -> None:
    user = uuid4()
    body = b'{"name": "deep", "expression": ' + b'{"not": ' * 5_000 + b"{}" + b"}" * 5_001
    headers = {"content-type": "application/json"}
    answer = await client("POST", f"/api/alerts/{user}/rules", user, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_JSON")


async def test_a_silence_beyond_all_days_is_refused(client: Client) -> None:
    user = await client.bench.user()
    times = {"starts_at": "9999-12-30T00:00:00Z", "ends_at": "9999-12-31T23:59:59-14:00"}
    answer = await client(
        "POST", f"/api/alerts/{user}/silences", user, json={"kind": "activity", "comment": "x", **times}
    )
    assert answer.status_code == 422


async def test_an_administrator_rotates_targets_in_parts_and_nobody_else(client: Client) -> None:
    bench, path, admin = client.bench, "/api/alerts/targets/rotate", uuid4()
    user = await bench.user()
    row = await bench.channel(user)
    assert (await client("POST", path, user, json={})).status_code == 403
    answer = await client("POST", path, admin, role="admin", json={})
    told = {"rewrapped": 0, "unreadable": [], "next": None, "keys": {"development-only": 2}, "readable": 0}
    assert (answer.status_code, answer.json()) == (200, told)
    await bench.execute("update channels set key_id = 'gone'")
    answer = await client("POST", path, admin, role="admin", json={})
    assert answer.json() == {
        **told,
        "unreadable": [f"{user}/{row['lane']}"],
        "keys": {"development-only": 1, "gone": 1},
    }
    answer = await client("POST", path, admin, role="admin", json={"after": f"{user}/{row['lane']}"})
    assert answer.json()["unreadable"] == []
    answer = await client("POST", path, admin, role="admin", json={"after": "what?"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "VALIDATION_ERROR")
    listed = await client("GET", f"/api/alerts/{user}/channels", user)
    assert listed.json()[0]["target"].endswith("/api/webhooks/…5678/…"), "a list opens nothing"
