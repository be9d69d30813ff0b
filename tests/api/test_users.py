from typing import Any

import httpx
import msgspec
import pytest

from services.api.main import Gateway
from tests.api.conftest import Person, client_of, problem, rows


async def test_signing_up_shows_a_key_that_works(gateway: Gateway, client: httpx.AsyncClient):
    answer = await client.post("/api/users", json={"email": "Ada@Example.com"})
    assert answer.status_code == 201, answer.text
    signed_up = answer.json()
    assert signed_up["user"]["email"] == "ada@example.com"
    assert signed_up["user"]["role"] == "user"
    settings = await client.get(
        f"/api/user/{signed_up['user']['id']}/settings", headers={"x-api-key": signed_up["api_key"]}
    )
    assert settings.status_code == 200
    assert settings.json() == {
        "user_id": signed_up["user"]["id"],
        "timezone": "America/New_York",
        "alerts_enabled": True,
        "min_score": 60.0,
        "min_premium_usd": "0.00",
        "investing_style": None,
    }


async def test_no_table_and_no_event_holds_a_key(gateway: Gateway, client: httpx.AsyncClient):
    headers = {"idempotency-key": "0123456789abcdef-signup"}
    key = (await client.post("/api/users", json={"email": "a@example.com"}, headers=headers)).json()["api_key"]
    secret = key.rpartition("_")[2] if key.count("_") == 2 else key.split("_", 2)[2]
    for table in ("users", "api_keys", "idempotency_keys", "audit_log"):
        found = await rows(gateway, f"select t::text from {table} t")
        assert not any(secret in row[0] for row in found)
    for row in await rows(gateway, "select value from outbox"):
        assert secret.encode() not in row["value"]


async def test_a_lost_answer_to_a_sign_up_is_given_again_with_the_same_key(client: httpx.AsyncClient):
    headers = {"idempotency-key": "0123456789abcdef-signup"}
    first = await client.post("/api/users", json={"email": "a@example.com"}, headers=headers)
    again = await client.post("/api/users", json={"email": "a@example.com"}, headers=headers)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"


async def test_a_stranger_elsewhere_who_guesses_the_idempotency_key_gets_no_api_key(
    gateway: Gateway, client: httpx.AsyncClient
):
    headers = {"idempotency-key": "0123456789abcdef-signup"}
    await client.post("/api/users", json={"email": "a@example.com"}, headers=headers)
    async with client_of(gateway.app, "198.51.100.9") as stranger:
        answer = await stranger.post("/api/users", json={"email": "a@example.com"}, headers=headers)
    assert answer.status_code == 409
    assert "api_key" not in answer.text


async def test_a_short_idempotency_key_does_not_guard_a_sign_up(client: httpx.AsyncClient):
    answer = await client.post("/api/users", json={"email": "a@example.com"}, headers={"idempotency-key": "1"})
    assert answer.status_code == 400
    assert problem(answer)["code"] == "IDEMPOTENCY_KEY_MALFORMED"


async def test_an_address_signs_up_once_whatever_its_case(client: httpx.AsyncClient):
    await client.post("/api/users", json={"email": "a@example.com"})
    answer = await client.post("/api/users", json={"email": "A@EXAMPLE.com"})
    assert answer.status_code == 409
    assert problem(answer)["code"] == "CONFLICT"


async def test_signing_up_tells_users_and_audit(gateway: Gateway, client: httpx.AsyncClient):
    await client.post("/api/users", json={"email": "a@example.com"})
    told = await rows(gateway, "select topic, count(*) from outbox group by topic order by topic")
    assert [tuple(row) for row in told] == [("api.audit", 2), ("api.users", 2)]


async def test_onboarding_watches_the_first_stocks(gateway: Gateway, client: httpx.AsyncClient, ada: Person):
    answer = await client.post(
        f"/api/user/{ada.id}/onboarding",
        json={"investing_style": "growth", "tickers": ["aapl", "BRK.B", "AAPL"]},
        headers=ada.headers,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"user_id": str(ada.id), "investing_style": "growth", "added": ["AAPL", "BRK.B"]}
    listed = await client.get(f"/api/watchlist/{ada.id}", headers=ada.headers)
    assert [stock["symbol"] for stock in listed.json()["stocks"]] == ["AAPL", "BRK.B"]
    told = await rows(gateway, "select count(*) from outbox where topic = 'api.watchlists'")
    assert told[0][0] == 2


async def test_settings_change_in_part_and_read_back(client: httpx.AsyncClient, ada: Person):
    path = f"/api/user/{ada.id}/settings"
    changed = await client.patch(
        path, json={"timezone": "Europe/Berlin", "min_premium_usd": "250000.50"}, headers=ada.headers
    )
    assert changed.status_code == 200, changed.text
    read = await client.get(path, headers=ada.headers)
    assert read.json() == changed.json()
    assert read.json()["timezone"] == "Europe/Berlin"
    assert read.json()["min_premium_usd"] == "250000.50"
    assert read.json()["alerts_enabled"] is True


async def test_how_a_user_invests_is_told_at_onboarding_read_back_and_changed(
    gateway: Gateway, client: httpx.AsyncClient, ada: Person
):
    path = f"/api/user/{ada.id}"
    await client.post(f"{path}/onboarding", json={"investing_style": "growth"}, headers=ada.headers)
    assert (await client.get(f"{path}/settings", headers=ada.headers)).json()["investing_style"] == "growth"
    assert (await last_settings_told(gateway))["investing_style"] == "growth"

    changed = await client.patch(f"{path}/settings", json={"investing_style": "income"}, headers=ada.headers)
    assert changed.status_code == 200, changed.text
    assert changed.json()["investing_style"] == "income"
    assert (await last_settings_told(gateway))["investing_style"] == "income"

    await client.patch(f"{path}/settings", json={"min_score": 5}, headers=ada.headers)
    assert (await client.get(f"{path}/settings", headers=ada.headers)).json()["investing_style"] == "income"
    assert (await last_settings_told(gateway))["investing_style"] == "income"


async def last_settings_told(gateway: Gateway) -> dict[str, Any]:
    told = await rows(gateway, "select headers, value from outbox where topic = 'api.users' order by id desc")
    return next(msgspec.json.decode(row["value"]) for row in told if b"settings_changed" in row["headers"])


async def test_a_patch_of_nothing_tells_nothing(gateway: Gateway, client: httpx.AsyncClient, ada: Person):
    before = await rows(gateway, "select count(*) from outbox")
    answer = await client.patch(f"/api/user/{ada.id}/settings", json={}, headers=ada.headers)
    assert answer.status_code == 200
    assert await rows(gateway, "select count(*) from outbox") == before


async def test_a_new_key_works_and_a_deleted_one_ends_at_once_here(client: httpx.AsyncClient, ada: Person):
    added = await client.post(f"/api/user/{ada.id}/keys", json={"name": "laptop"}, headers=ada.headers)
    assert added.status_code == 201
    key = added.json()
    other = {"authorization": f"Bearer {key['api_key']}"}
    path = f"/api/user/{ada.id}/keys"
    listed = (await client.get(path, headers=other)).json()["keys"]
    assert [one["name"] for one in listed] == ["first", "laptop"]
    assert all("api_key" not in one and "digest" not in one for one in listed)
    assert (await client.delete(f"{path}/{key['id']}", headers=ada.headers)).status_code == 204
    assert (await client.get(path, headers=other)).status_code == 401
    assert (await client.delete(f"{path}/{key['id']}", headers=ada.headers)).status_code == 404


async def test_a_key_deleted_on_one_replica_ends_on_another_within_five_seconds(make_gateway, clock, ada: Person):
    here, there = make_gateway(), make_gateway()
    async with client_of(here.app) as one, client_of(there.app) as two:
        path = f"/api/user/{ada.id}/keys"
        key = (await one.post(path, json={"name": "x"}, headers=ada.headers)).json()
        other = {"x-api-key": key["api_key"]}
        assert (await two.get(path, headers=other)).status_code == 200
        await one.delete(f"{path}/{key['id']}", headers=ada.headers)
        clock.advance(5)
        assert (await two.get(path, headers=other)).status_code == 401


async def test_a_user_makes_no_admin_key(client: httpx.AsyncClient, ada: Person):
    answer = await client.post(f"/api/user/{ada.id}/keys", json={"name": "x", "role": "admin"}, headers=ada.headers)
    assert answer.status_code == 403


async def test_an_admin_with_a_user_key_is_a_user(client: httpx.AsyncClient, admin: Person):
    path = f"/api/user/{admin.id}/keys"
    weak = (await client.post(path, json={"name": "weak"}, headers=admin.headers)).json()["api_key"]
    headers = {"x-api-key": weak}
    assert (await client.get("/api/audit", headers=headers)).status_code == 403
    raised = await client.post(path, json={"name": "y", "role": "admin"}, headers=headers)
    assert raised.status_code == 403


async def test_an_admin_adds_no_admin_key_to_a_user(client: httpx.AsyncClient, admin: Person, ada: Person):
    answer = await client.post(f"/api/user/{ada.id}/keys", json={"name": "x", "role": "admin"}, headers=admin.headers)
    assert answer.status_code == 403


WRONG: list[tuple[str, str, object]] = [
    ("POST", "/api/users", {}),
    ("POST", "/api/users", {"email": "not an address"}),
    ("POST", "/api/users", {"email": 7}),
    ("POST", "/api/users", {"email": "a@example.com", "role": "admin"}),
    ("POST", "/api/users", []),
    ("POST", "/api/users", "text"),
    ("POST", "/api/users", None),
    ("POST", "/api/user/{id}/onboarding", {"investing_style": "yolo"}),
    ("POST", "/api/user/{id}/onboarding", {"investing_style": "value", "tickers": "AAPL"}),
    ("POST", "/api/user/{id}/onboarding", {"investing_style": "value", "tickers": ["$$$"]}),
    ("POST", "/api/user/{id}/onboarding", {"investing_style": "value", "tickers": [1]}),
    ("POST", "/api/user/{id}/onboarding", {"investing_style": "value", "tickers": ["A"] * 501}),
    ("PATCH", "/api/user/{id}/settings", {"timezone": "Mars/Olympus"}),
    ("PATCH", "/api/user/{id}/settings", {"timezone": None}),
    ("PATCH", "/api/user/{id}/settings", {"investing_style": "yolo"}),
    ("PATCH", "/api/user/{id}/settings", {"investing_style": None}),
    ("PATCH", "/api/user/{id}/settings", {"alerts_enabled": "yes"}),
    ("PATCH", "/api/user/{id}/settings", {"alerts_enabled": None}),
    ("PATCH", "/api/user/{id}/settings", {"min_score": 101}),
    ("PATCH", "/api/user/{id}/settings", {"min_score": True}),
    ("PATCH", "/api/user/{id}/settings", {"min_premium_usd": -1}),
    ("PATCH", "/api/user/{id}/settings", {"min_premium_usd": "1.001"}),
    ("PATCH", "/api/user/{id}/settings", {"min_premium_usd": "1e40"}),
    ("PATCH", "/api/user/{id}/settings", {"min_premium_usd": "NaN"}),
    ("PATCH", "/api/user/{id}/settings", {"unknown": 1}),
    ("PATCH", "/api/user/{id}/settings", [1]),
    ("POST", "/api/user/{id}/keys", {"name": ""}),
    ("POST", "/api/user/{id}/keys", {"name": "x" * 101}),
    ("POST", "/api/user/{id}/keys", {"name": "x", "role": "god"}),
    ("POST", "/api/watchlist/{id}", {"ticker": ""}),
    ("POST", "/api/watchlist/{id}", {"ticker": "AA PL"}),
    ("POST", "/api/watchlist/{id}", {"ticker": "../etc"}),
    ("POST", "/api/watchlist/{id}", {"ticker": "ß"}),
    ("POST", "/api/watchlist/{id}", {"ticker": "TOOLONGSYMB"}),
    ("POST", "/api/watchlist/{id}", {"symbol": "AAPL"}),
    ("PATCH", "/api/watchlist/{id}/AAPL", {"note": 5}),
    ("DELETE", "/api/watchlist/{id}/A%24B", None),
    ("GET", "/api/audit?limit=0", None),
    ("GET", "/api/audit?limit=x", None),
    ("GET", "/api/audit?before=yesterday", None),
]


async def test_wrong_input_is_told_what_is_wrong(make_gateway, admin: Person, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENBELL_API_SIGNUP_QUOTA", "1000")
    async with client_of(make_gateway().app) as client:
        for method, path, body in WRONG:
            answer = await client.request(
                method,
                path.format(id=admin.id),
                headers={"x-api-key": admin.key} if "/users" not in path else {},
                content=msgspec.json.encode(body) if method in {"POST", "PATCH"} else None,
            )
            assert answer.status_code == 422, (method, path, body, answer.text)
            assert problem(answer)["code"] == "VALIDATION_ERROR"


async def test_what_is_wrong_is_named_by_its_place(client: httpx.AsyncClient, ada: Person):
    answer = await client.patch(
        f"/api/user/{ada.id}/settings", json={"min_score": 200, "timezone": "x"}, headers=ada.headers
    )
    details = problem(answer)["details"]
    assert {one["path"] for one in details} == {"min_score", "timezone"}
    assert all(one["message"] for one in details)
