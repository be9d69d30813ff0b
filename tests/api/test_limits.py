import asyncio

import httpx
import pytest

from services.api.limits import Limiter, Policy
from services.api.main import Gateway
from shared.errors import RateLimited
from tests.api.conftest import Person, client_of, problem, rows
from tests.conftest import ManualClock

TEN_A_MINUTE = Policy("test", 10, 60)


async def spend(limiter: Limiter, policy: Policy, caller: str, times: int) -> int:
    """How many of `times` tries were let through."""
    passed = 0
    for _ in range(times):
        try:
            await limiter.spend(policy, caller)
        except RateLimited:
            continue
        passed += 1
    return passed


async def test_two_gateways_together_let_a_quota_through_and_no_more(open_database, clock: ManualClock):
    policy = Policy("test", 100, 60)
    one, two = Limiter(open_database("api"), clock), Limiter(open_database("api"), clock)
    passed = sum(await asyncio.gather(*(spend(limiter, policy, "ada", 40) for limiter in (one, two) for _ in range(3))))
    assert 100 - 2 * 5 <= passed <= 100
    assert await spend(one, policy, "bob", 1) == 1


async def test_a_bucket_refills_evenly(open_database, clock: ManualClock):
    limiter = Limiter(open_database("api"), clock)
    assert await spend(limiter, TEN_A_MINUTE, "ada", 30) == 10
    with pytest.raises(RateLimited) as refused:
        await limiter.spend(TEN_A_MINUTE, "ada")
    assert refused.value.retry_after_s == pytest.approx(6)
    clock.advance(6)
    assert await spend(limiter, TEN_A_MINUTE, "ada", 5) == 1
    clock.advance(600)
    assert await spend(limiter, TEN_A_MINUTE, "ada", 30) == 10


async def test_a_polite_caller_is_never_refused(open_database, clock: ManualClock):
    limiter = Limiter(open_database("api"), clock)
    policy = Policy("test", 600, 60)
    for _ in range(300):
        await limiter.spend(policy, "ada")
        clock.advance(0.11)
    for _ in range(50):
        await limiter.spend(policy, "ada")
        clock.advance(6)


async def test_a_refused_caller_costs_no_statement(open_database, clock: ManualClock, monkeypatch):
    database = open_database("api")
    limiter = Limiter(database, clock)
    await spend(limiter, TEN_A_MINUTE, "ada", 11)
    monkeypatch.setattr(database, "read", None)
    assert await spend(limiter, TEN_A_MINUTE, "ada", 50) == 0


async def test_a_busy_caller_costs_few_statements(open_database, clock: ManualClock, monkeypatch):
    limiter = Limiter(open_database("api"), clock)
    statements = 0
    original = limiter._refill

    async def counted(*args) -> None:
        nonlocal statements
        statements += 1
        await original(*args)

    monkeypatch.setattr(limiter, "_refill", counted)
    assert await spend(limiter, Policy("test", 1000, 60), "ada", 1000) == 1000
    assert statements < 40


async def test_the_gateway_says_what_is_left_and_then_429(make_gateway, monkeypatch, ada: Person):
    monkeypatch.setenv("OPENBELL_API_USER_QUOTA", "20")
    one, two = make_gateway(), make_gateway()
    path = f"/api/user/{ada.id}/settings"
    async with client_of(one.app) as first, client_of(two.app) as second:
        answer = await first.get(path, headers=ada.headers)
        assert answer.headers["ratelimit-policy"] == '"user";q=20;w=60'
        assert answer.headers["ratelimit"] == '"user";r=19;t=3'
        answers = [await client.get(path, headers=ada.headers) for _ in range(15) for client in (first, second)]
    refused = [one for one in answers if one.status_code == 429]
    assert 1 + len([one for one in answers if one.status_code == 200]) == 20
    error = problem(refused[-1])
    assert error["code"] == "RATE_LIMITED"
    assert error["details"] == {"policy": "user", "quota": 20, "window_s": 60}
    assert int(refused[-1].headers["retry-after"]) >= 1


async def test_signing_up_is_limited_by_address(gateway: Gateway, client: httpx.AsyncClient):
    codes = [(await client.post("/api/users", json={"email": f"u{n}@example.com"})).status_code for n in range(7)]
    assert codes == [201] * 5 + [429] * 2
    spoofed = {"x-forwarded-for": "192.0.2.1"}
    answer = await client.post("/api/users", json={"email": "z@example.com"}, headers=spoofed)
    assert answer.status_code == 429
    async with client_of(gateway.app, "198.51.100.1") as elsewhere:
        assert (await elsewhere.post("/api/users", json={"email": "z@example.com"})).status_code == 201


async def test_an_ipv6_customer_has_one_bucket(gateway: Gateway):
    codes = []
    for n in range(6):
        async with client_of(gateway.app, f"2001:db8:1:2::{n + 1:x}") as client:
            codes.append((await client.post("/api/users", json={"email": f"v{n}@example.com"})).status_code)
    assert codes == [201] * 5 + [429]


async def test_behind_a_proxy_of_ours_the_client_it_saw_counts(make_gateway, monkeypatch):
    monkeypatch.setenv("OPENBELL_API_TRUSTED_PROXIES", "1")
    async with client_of(make_gateway().app) as client:
        for n in range(7):
            headers = {"x-forwarded-for": f"10.0.0.{n}, 192.0.2.{n}"}
            answer = await client.post("/api/users", json={"email": f"w{n}@example.com"}, headers=headers)
            assert answer.status_code == 201
        codes = [
            (
                await client.post(
                    "/api/users",
                    json={"email": f"x{n}@example.com"},
                    headers={"x-forwarded-for": f"6.6.6.{n}, 192.0.2.99"},
                )
            ).status_code
            for n in range(6)
        ]
    assert codes == [201] * 5 + [429]


async def test_who_guesses_keys_has_to_wait(gateway: Gateway, client: httpx.AsyncClient, ada: Person):
    answers = [
        await client.get(f"/api/user/{ada.id}/keys", headers={"x-api-key": f"ob_{n:032x}_{'a' * 43}"})
        for n in range(35)
    ]
    assert [one.status_code for one in answers] == [401] * 30 + [429] * 5
    assert (await client.get("/api/health")).status_code == 200
    assert len(await rows(gateway, "select * from rate_buckets where key like 'failures/%'")) == 1
