"""Accounts are connected by OAuth, once for each state and for its user only."""

import asyncio
import logging
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import text

from services.broker.adapters.oauth_tokens import HttpTokens
from services.broker.domain.oauth import Granted, challenge, granted_of
from services.broker.service.vault import NoCredentials
from services.broker.store.accounts import AccountStore
from shared.clock import new_id
from shared.errors import Transient
from shared.work import Busy, OutcomeUnknown
from tests.broker.credentials import NOW, an_account
from tests.broker.oauth_rig import PAGE, Broker, at_venue, code_of

# Away and back


async def test_the_user_is_sent_to_the_venue_with_a_state_and_a_challenge(broker: Broker):
    answer = await broker.start()
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    url = urlsplit(answer.json()["url"])
    asked = {name: value[0] for name, value in parse_qs(url.query).items()}
    assert url.path == "/authorize"
    assert asked.pop("state")
    assert len(asked.pop("code_challenge")) == 43
    assert asked == {
        "response_type": "code",
        "client_id": "openbell",
        "redirect_uri": PAGE,
        "scope": "trading",
        "code_challenge_method": "S256",
    }


async def test_back_from_the_venue_the_account_has_tokens_and_no_answer_shows_them(
    broker: Broker, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    answer = await broker.connect()
    assert answer.status_code == 200
    assert answer.json() == {"account_id": str(broker.account.id), "expires_at": "2026-11-22T15:15:00Z"}
    assert await broker.tokens() == {"access_token": "access-secret-1", "refresh_token": "refresh-secret-1"}
    assert challenge(broker.fake.grants[0]["code_verifier"])
    async with broker.service.db.read() as tx:
        told = [bytes(row["value"]) for row in await tx.fetch(text("select value from outbox"))]
        states = await tx.fetch(text("select * from oauth_states"))
    assert b"connect.account" in b"".join(told)
    assert states == []
    shown = answer.text + caplog.text + repr(told)
    for secret in ("access-secret", "refresh-secret", "the-client-secret", broker.fake.grants[0]["code_verifier"]):
        assert secret not in shown


async def test_neither_state_nor_verifier_lies_in_the_table(broker: Broker):
    answer = await broker.start()
    state = broker.fake.consent(answer.json()["url"])["state"]
    async with broker.service.db.read() as tx:
        (row,) = await tx.fetch(text("select * from oauth_states"))
    assert state.encode() not in row["digest"] + row["body"]
    assert state not in repr(dict(row))


async def test_a_state_is_good_once(broker: Broker):
    query = broker.fake.consent((await broker.start()).json()["url"])
    assert (await broker.back(query)).status_code == 200
    assert code_of(await broker.back(query)) == (400, "OAUTH_STATE_INVALID")
    assert len(broker.fake.grants) == 1


async def test_of_two_who_come_back_with_one_state_one_gets_through(broker: Broker):
    query = broker.fake.consent((await broker.start()).json()["url"])
    answers = await asyncio.gather(*(broker.back(query) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400, 400]
    assert len(broker.fake.grants) == 1


async def test_a_state_is_of_no_use_to_another_user_and_stays_good_for_its_own(broker: Broker):
    query = broker.fake.consent((await broker.start()).json()["url"])
    assert code_of(await broker.back(query, new_id())) == (400, "OAUTH_STATE_INVALID")
    assert code_of(await broker.back(query, venue="other")) == (400, "OAUTH_STATE_INVALID")
    assert broker.fake.grants == []
    assert (await broker.back(query)).status_code == 200


async def test_a_state_ends_after_ten_minutes(broker: Broker):
    query = broker.fake.consent((await broker.start()).json()["url"])
    broker.clock.advance(600)
    assert code_of(await broker.back(query)) == (400, "OAUTH_STATE_INVALID")
    assert broker.fake.grants == []


async def test_another_start_makes_the_first_one_void(broker: Broker):
    first = broker.fake.consent((await broker.start()).json()["url"])
    second = broker.fake.consent((await broker.start()).json()["url"])
    assert code_of(await broker.back(first)) == (400, "OAUTH_STATE_INVALID")
    assert (await broker.back(second)).status_code == 200


async def test_only_the_owner_of_an_account_of_that_venue_may_start(broker: Broker):
    assert code_of(await broker.start(new_id())) == (404, "UNKNOWN_ACCOUNT")
    elsewhere = await an_account(broker.service.db, "tastytrade", broker.user)
    assert code_of(await broker.start(account=elsewhere)) == (404, "UNKNOWN_ACCOUNT")
    query = {"account_id": str(broker.account.id)}
    unknown = await broker.caller.ask("GET", "/broker/oauth/nobody/start", broker.user, params=query)
    assert code_of(unknown) == (404, "OAUTH_NOT_CONFIGURED")


async def test_an_account_that_was_closed_meanwhile_gets_no_tokens(broker: Broker):
    query = broker.fake.consent((await broker.start()).json()["url"])
    async with broker.service.db.transaction() as tx:
        await AccountStore().close(tx, broker.account.id, NOW)
    assert code_of(await broker.back(query)) == (409, "ACCOUNT_CLOSED")
    with pytest.raises(NoCredentials):
        await broker.tokens()


async def test_a_user_who_says_no_is_told_so_and_the_state_is_used(broker: Broker):
    state = broker.fake.consent((await broker.start()).json()["url"])["state"]
    assert code_of(await broker.back({"state": state, "error": "access_denied"})) == (400, "OAUTH_DENIED")
    assert code_of(await broker.back({"state": state, "code": "code-1"})) == (400, "OAUTH_STATE_INVALID")
    assert code_of(await broker.back({"state": state})) == (422, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("busy", (503, "OAUTH_NOT_EXCHANGED")),
        ("broken", (503, "OAUTH_NOT_EXCHANGED")),
        ("garbage", (503, "OAUTH_NOT_EXCHANGED")),
        ("client", (503, "OAUTH_NOT_EXCHANGED")),
        (None, (400, "OAUTH_GRANT_REFUSED")),
    ],
)
async def test_an_exchange_that_fails_says_so_and_shows_nothing(
    broker: Broker, fault: Any, answer: tuple[int, str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    query = broker.fake.consent((await broker.start()).json()["url"])
    broker.fake.faults = [fault] if fault else []
    if fault is None:
        query["code"] = "a-wrong-code"
    given = await broker.back(query)
    assert code_of(given) == answer
    (grant,) = broker.fake.grants
    shown = given.text + caplog.text.replace(f"code={query['code']}", "")  # the test's own client logs its address
    for secret in ("the-client-secret", grant["code_verifier"], query["code"]):
        assert secret not in shown


async def test_a_venue_without_pkce_and_with_json_is_spoken_to_as_it_likes(broker: Broker):
    about = replace(broker.about, pkce=False, body="json")
    query = broker.fake.consent(about.address("s", "v"))
    granted = await broker.endpoint.ask(about, about.code_grant(query["code"], "v"))
    assert granted.access_token == "access-secret-1"
    assert "code_verifier" not in broker.fake.grants[0]


# What a venue answers


async def test_a_venue_that_does_not_answer_may_have_taken_the_grant_and_one_out_of_reach_has_not(broker: Broker):
    broker.fake.faults = ["hang"]
    impatient = HttpTokens(timeout_s=0.2)
    with pytest.raises(OutcomeUnknown):
        await impatient.ask(broker.about, broker.about.refresh_grant("x"))
    with pytest.raises(Transient):
        await impatient.ask(replace(broker.about, token_url="http://127.0.0.1:1/token"), {"refresh_token": "x"})
    broker.fake.faults = ["busy"]
    with pytest.raises(Busy):
        await broker.endpoint.ask(broker.about, broker.about.refresh_grant("x"))
    await impatient.close()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"access_token": ""},
        {"access_token": 5},
        {"access_token": "a\nb"},
        {"access_token": "a", "refresh_token": 5},
        {"access_token": "a", "expires_in": "soon"},
        {"access_token": "a", "expires_in": True},
        {"access_token": "a", "expires_in": -1},
        {"access_token": "a", "expires_in": 1e300},
        {"access_token": "a", "expires_in": float("nan")},
    ],
)
def test_an_answer_without_usable_tokens_is_none(answer: Any):
    with pytest.raises(ValueError):
        granted_of(answer)


def test_tokens_and_client_secrets_do_not_show_themselves():
    assert granted_of({"access_token": "secret-a", "refresh_token": "secret-r", "expires_in": "900"}).lifetime_s == 900
    shown = repr(Granted("secret-a", "secret-r", 1.0)) + repr(at_venue("https://venue.example"))
    assert "secret-" not in shown
    assert "the-client-secret" not in shown


def test_addresses_must_be_encrypted_but_on_this_machine():
    with pytest.raises(ValueError, match="https"):
        at_venue("http://venue.example")
    at_venue("http://127.0.0.1:5")
