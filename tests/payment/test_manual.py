"""Plans that a person grants, over the app that the service serves."""

from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest

from shared.db import Database
from tests.payment.ledger_bench import Bench, Client, served


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("payment"))


@pytest.fixture
async def client(bench: Bench, database_url: str) -> AsyncIterator[Client]:
    async with served(bench, database_url) as client:
        yield client


GRANT = {"plan": "pro", "until": "2026-12-01T00:00:00Z", "reason": "a friend"}


async def test_an_administrator_grants_extends_and_ends_a_plan(client: Client) -> None:
    bench = client.bench
    user = await bench.user()
    first = await client("POST", f"/pay/manual/{user}", json=GRANT)
    assert first.status_code == 201, first.text
    assert (first.json()["status"], first.json()["entitlements"]) == ("active", ["pro"])
    longer = await client("POST", f"/pay/manual/{user}", json=GRANT | {"until": "2027-01-01T01:00:00+01:00"})
    assert longer.json()["id"] == first.json()["id"]
    assert longer.json()["current_period_end"] == "2027-01-01T00:00:00Z"
    over = await client("POST", f"/pay/manual/{user}/end", json={"reason": "enough"})
    assert (over.status_code, over.json()["status"], over.json()["entitlements"]) == (200, "canceled", [])
    assert (await client("POST", f"/pay/manual/{user}/end", json={"reason": "enough"})).status_code == 404
    told = await bench.told()
    assert [name for name, _ in told] == [*["subscription.changed", "action.audited"] * 3, "action.audited"]
    assert [body["action"] for name, body in told if name == "action.audited"] == [
        "grant.manual_plan",
        "grant.manual_plan",
        "end.manual_plan",
        "refuse.end.manual_plan",
    ]


async def test_a_payment_by_another_way_is_booked_once_and_told(client: Client) -> None:
    bench = client.bench
    user = await bench.user()
    paid = GRANT | {"paid": {"amount": "29.00", "currency": "eur", "reference": "wire-17"}}
    assert (await client("POST", f"/pay/manual/{user}", json=paid)).status_code == 201
    again = await client("POST", f"/pay/manual/{user}", json=paid)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "PAYMENT_BOOKED")
    assert await bench.balances() == {("assets:bank", "EUR"): 2900, ("income:subscriptions", "EUR"): -2900}
    receipts = [body for name, body in await bench.told() if name == "payment.received"]
    assert [(one["amount"], one["currency"], one["reference"]) for one in receipts] == [
        ("29.00", "EUR", "manual/wire-17")
    ]


async def test_an_idempotency_key_makes_a_grant_harmless_to_repeat(client: Client) -> None:
    user = await client.bench.user()
    paid = GRANT | {"paid": {"amount": 5, "currency": "USD", "reference": "wire-18"}}
    answers = [
        await client("POST", f"/pay/manual/{user}", json=paid, headers={"idempotency-key": "k" * 20}) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"plan": "gold"}, 404, "NOT_FOUND"),
        ({"until": "2026-10-31T00:00:00Z"}, 422, "VALIDATION_ERROR"),
        ({"until": "2926-10-31T00:00:00Z"}, 422, "VALIDATION_ERROR"),
        ({"until": "9999-12-31T23:59:59-12:00"}, 422, "VALIDATION_ERROR"),
        ({"until": "2026-12-01T00:00:00"}, 422, "VALIDATION_ERROR"),
        ({"reason": ""}, 422, "VALIDATION_ERROR"),
        ({"paid": {"amount": "0", "currency": "USD", "reference": "r"}}, 422, "BAD_AMOUNT"),
        ({"paid": {"amount": "-5", "currency": "USD", "reference": "r"}}, 422, "BAD_AMOUNT"),
        ({"paid": {"amount": "0.001", "currency": "USD", "reference": "r"}}, 422, "BAD_AMOUNT"),
        ({"paid": {"amount": "5", "currency": "QQQ", "reference": "r"}}, 422, "UNKNOWN_CURRENCY"),
        ({"paid": {"amount": "5", "currency": "USD", "reference": "=cmd"}}, 422, "VALIDATION_ERROR"),
        ({"paid": {"amount": "9" * 60, "currency": "USD", "reference": "r"}}, 422, "BAD_AMOUNT"),
        ({"paid": {"amount": "NaN", "currency": "USD", "reference": "r"}}, 422, "VALIDATION_ERROR"),
    ],
)
async def test_a_bad_grant_is_refused_and_leaves_nothing(
    client: Client, change: dict[str, Any], status: int, code: str
) -> None:
    user = await client.bench.user()
    answer = await client("POST", f"/pay/manual/{user}", json=GRANT | change)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert not await client.bench.rows("select id from subscriptions")
    assert not await client.bench.rows("select key from ledger_entries")
    audited = [(body["action"], body["details"]) for _, body in await client.bench.told()]
    judged = ("refuse.grant.manual_plan", {"code": code, "user": str(user)})
    wrong_form = ("refuse.request", {"code": "VALIDATION_ERROR", "path": f"/pay/manual/{user}"})
    assert audited in ([judged], [wrong_form])
    assert answer.json()["error"]["code"] == audited[0][1]["code"]


@pytest.mark.parametrize(
    ("path", "sent", "status", "code"),
    [
        ("/pay/checkout", {"json": {"plan": 7}}, 422, "VALIDATION_ERROR"),
        ("/pay/checkout", {"json": {"plan": "pro", "price": 1}}, 422, "VALIDATION_ERROR"),
        ("/pay/checkout", {"json": {"plan": "p\x00"}}, 422, "VALIDATION_ERROR"),
        ("/pay/portal", {"json": {"customer": "x"}}, 422, "VALIDATION_ERROR"),
        ("/pay/change-plan", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, "INVALID_JSON"),
        ("/pay/crypto/invoices", {"json": {}}, 422, "VALIDATION_ERROR"),
        ("/pay/cancel?now=perhaps", {}, 422, "VALIDATION_ERROR"),
    ],
)
async def test_a_request_of_the_wrong_form_is_audited_once_without_what_was_in_it(
    client: Client, path: str, sent: dict[str, Any], status: int, code: str
) -> None:
    answer = await client("POST", path, **sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    ((name, told),) = await client.bench.told()
    assert (name, told["action"], told["actor"]) == ("action.audited", "refuse.request", str(client.admin))
    assert told["details"] == {"code": code, "path": path.partition("?")[0]}
    assert told["request_id"]


async def test_an_end_that_is_refused_is_audited(client: Client) -> None:
    user = uuid4()
    assert (await client("POST", f"/pay/manual/{user}/end", json={"reason": "x"})).status_code == 404
    assert (await client("POST", f"/pay/manual/{user}/end", json={"reason": ""})).status_code == 422
    assert [(told["action"], told["details"]["code"]) for _, told in await client.bench.told()] == [
        ("refuse.end.manual_plan", "NOT_FOUND"),
        ("refuse.request", "VALIDATION_ERROR"),
    ]


async def test_a_grant_stands_in_nobodys_way(client: Client) -> None:
    user = await client.bench.user()
    await client.bench.subscribed(user)
    answer = await client("POST", f"/pay/manual/{user}", json=GRANT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "ALREADY_SUBSCRIBED")
    assert (await client("POST", f"/pay/manual/{user}/end", json={"reason": "x"})).status_code == 404
    assert (await client("POST", f"/pay/manual/{uuid4()}", json=GRANT)).status_code == 404
    assert (await client("POST", f"/pay/manual/{user}", json=GRANT, role="user")).status_code == 403
