"""Credentials are encrypted at rest, bound to their account, wrapped anew by a command, and never shown."""

import base64
import logging
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from os import urandom
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from services.broker.domain.credentials import BadCredentials, Secrets, checked
from services.broker.ports import Account
from services.broker.routes.credentials import handlers
from services.broker.service.credentials import Actor, Credentials, NoSuchAccount
from services.broker.service.vault import NoCredentials, Unreadable, Vault
from services.broker.settings import DEVELOPMENT_KEYS
from services.broker.store.accounts import AccountStore
from services.broker.store.credentials import CredentialStore
from shared.clock import new_id
from shared.db import Database
from shared.envelope import BadKeys, Envelope, Keys, Sealed, Unopened, keys_of
from shared.identity import Identity, UnsafeSecret
from shared.logs import JsonFormatter
from shared.settings import SharedSettings
from tests.broker.credentials import NEW, NOW, OLD, Caller, a_service, an_account, calling
from tests.conftest import ManualClock

SECRET = "PK-very-secret-value"
GIVEN = {"key": "AK-the-key-id", "secret": SECRET}
_COPY = text("""
    insert into credentials (account_id, version, names, key_id, wrapped, body, updated_at)
    select cast(:to as uuid), version, names, key_id, wrapped, body, updated_at from credentials
    where account_id = cast(:from_ as uuid)""")


def a_vault(keys: str = NEW, slice_rows: int = 500) -> Vault:
    return Vault(CredentialStore(slice_rows), Envelope(Keys(keys), urandom), clock=lambda: NOW, new_id=new_id)


@pytest.fixture
def db(open_database: Callable[[str], Database]) -> Database:
    return open_database("broker")


async def rows(db: Database) -> list[Any]:
    async with db.read() as tx:
        return await tx.fetch(text("select * from credentials order by account_id"))


async def put(db: Database, vault: Vault, account: Account, given: dict[str, str] = GIVEN) -> None:
    async with db.transaction() as tx:
        await vault.put(tx, account, given)


async def get(db: Database, vault: Vault, account: Account) -> dict[str, str]:
    async with db.read() as tx:
        return dict(await vault.get(tx, account))


async def rotate(db: Database, vault: Vault) -> tuple[int, Sequence[Any]]:
    async with db.transaction() as tx:
        done = await vault.rotate(tx)
    return done.rewrapped, done.unreadable


# At rest


async def test_what_is_put_comes_back_and_nothing_of_it_lies_in_the_table(db: Database):
    vault, account = a_vault(), await an_account(db)
    await put(db, vault, account)
    assert await get(db, vault, account) == GIVEN
    (row,) = await rows(db)
    written = repr(dict(row)).encode() + row["body"] + row["wrapped"]
    for secret in GIVEN.values():
        assert secret.encode() not in written
    assert row["names"] == ["key", "secret"]


async def test_every_put_has_a_data_key_and_nonces_of_its_own_and_another_version(db: Database):
    vault, account = a_vault(), await an_account(db)
    await put(db, vault, account)
    (first,) = await rows(db)
    await put(db, vault, account)
    (second,) = await rows(db)
    for name in ("wrapped", "body", "version"):
        assert first[name] != second[name]
    assert first["wrapped"][:12] != second["wrapped"][:12]


async def test_a_row_moved_to_another_account_does_not_open(db: Database):
    vault, mine = a_vault(), await an_account(db)
    theirs = await an_account(db)
    await put(db, vault, mine)
    async with db.transaction() as tx:
        await tx.execute(_COPY, to=theirs.id, from_=mine.id)
    with pytest.raises(Unreadable):
        await get(db, vault, theirs)
    with pytest.raises(Unreadable):
        await get(db, vault, replace(mine, venue="tastytrade"))
    assert await get(db, vault, mine) == GIVEN


@pytest.mark.parametrize("column", ["wrapped", "body"])
async def test_a_changed_byte_does_not_open(db: Database, column: str):
    vault, account = a_vault(), await an_account(db)
    await put(db, vault, account)
    async with db.transaction() as tx:
        await tx.execute(text(f"update credentials set {column} = set_byte({column}, 20, get_byte({column}, 20) # 1)"))
    with pytest.raises(Unreadable):
        await get(db, vault, account)


async def test_what_was_forgotten_is_gone(db: Database):
    vault, account = a_vault(), await an_account(db)
    await put(db, vault, account)
    async with db.transaction() as tx:
        assert await vault.forget(tx, account.id)
        assert not await vault.forget(tx, account.id)
    with pytest.raises(NoCredentials):
        await get(db, vault, account)
    assert await rows(db) == []


async def test_a_put_that_is_rolled_back_leaves_what_was_there(db: Database):
    vault, account = a_vault(), await an_account(db)
    await put(db, vault, account)

    async def failing() -> None:
        async with db.transaction() as tx:
            await vault.put(tx, account, {"key": "x"})
            raise LookupError

    with pytest.raises(LookupError):
        await failing()
    assert await get(db, vault, account) == GIVEN


# Keys


async def test_the_first_key_encrypts_and_all_decrypt(db: Database):
    before, after = await an_account(db), await an_account(db)
    await put(db, a_vault(OLD), before)
    both = a_vault(f"{NEW}, {OLD}")
    await put(db, both, after)
    assert {row["key_id"] for row in await rows(db)} == {"old", "new"}
    assert await get(db, both, before) == await get(db, both, after) == GIVEN


async def test_a_rotation_wraps_what_is_under_old_keys_and_only_that(db: Database):
    accounts = [await an_account(db) for _ in range(3)]
    for account in accounts[:2]:
        await put(db, a_vault(OLD), account)
    await put(db, a_vault(NEW), accounts[2])
    before = {row["account_id"]: row for row in await rows(db)}
    both = a_vault(f"{NEW},{OLD}")
    assert await rotate(db, both) == (2, [])
    assert await rotate(db, both) == (0, [])
    for row in await rows(db):
        assert (row["key_id"], row["body"]) == ("new", before[row["account_id"]]["body"])
        assert row["version"] == before[row["account_id"]]["version"]
    for account in accounts:
        assert await get(db, a_vault(NEW), account) == GIVEN  # the old key may leave


async def test_a_rotation_that_breaks_off_goes_on_where_it_was(db: Database):
    for _ in range(5):
        await put(db, a_vault(OLD), await an_account(db))
    both = a_vault(f"{NEW},{OLD}", slice_rows=2)
    assert (await rotate(db, both))[0] == 2

    async def broken() -> None:
        async with db.transaction() as tx:
            assert (await both.rotate(tx)).rewrapped == 2
            raise LookupError

    with pytest.raises(LookupError):
        await broken()
    assert [(await rotate(db, both))[0] for _ in range(3)] == [2, 1, 0]


async def test_what_does_not_open_stays_as_it_is_and_does_not_hold_up_the_rest(db: Database):
    lost, good = await an_account(db), await an_account(db)
    await put(db, a_vault("gone:" + base64.b64encode(b"g" * 32).decode()), lost)
    await put(db, a_vault(OLD), good)
    both = a_vault(f"{NEW},{OLD}")
    assert await rotate(db, both) == (1, [lost.id])
    async with db.read() as tx:
        assert await both.keys(tx) == {"gone": 1, "new": 1}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "k",
        "k:",
        ":" + base64.b64encode(b"x" * 32).decode(),
        base64.b64encode(b"x" * 32).decode(),
        "k:" + base64.b64encode(b"x" * 16).decode(),
        "k:not base64!",
        f"{OLD},{OLD}",
        f"{OLD},",
        "a b:" + base64.b64encode(b"x" * 32).decode(),
    ],
)
def test_keys_of_the_wrong_form_are_refused_without_being_shown(value: str):
    with pytest.raises(BadKeys) as refused:
        Keys(value)
    for part in value.replace(",", ":").split(":"):
        assert len(part) < 5 or part not in repr(refused.value)


@pytest.mark.parametrize(
    "value", ["", DEVELOPMENT_KEYS, f"{NEW},{DEVELOPMENT_KEYS}", f"mine:{DEVELOPMENT_KEYS.partition(':')[2]}"]
)
def test_production_starts_with_keys_of_its_own_only(value: str):
    production = SharedSettings(environment="production", identity_secret=SecretStr("s" * 40))
    with pytest.raises(UnsafeSecret):
        keys_of("OPENBELL_BROKER_CREDENTIAL_KEYS", value, production)
    assert keys_of("OPENBELL_BROKER_CREDENTIAL_KEYS", NEW, production).current == "new"


def test_development_has_a_key():
    assert keys_of("X", DEVELOPMENT_KEYS, SharedSettings()).current == "development-only"


# Never shown


async def failures(db: Database) -> list[BaseException]:
    """Force every failure that has to do with credentials while a secret is at hand."""
    account, stranger = await an_account(db), await an_account(db)
    found: list[BaseException] = []

    async def caught(doing: Callable[[], Any]) -> None:
        try:
            await doing()
        except Exception as error:  # noqa: BLE001 - all of them are looked at
            found.append(error)

    await caught(lambda: put(db, a_vault(), Account(new_id(), new_id(), "alpaca", "paper")))  # no such account
    await caught(lambda: get(db, a_vault(), account))
    await put(db, a_vault(), account)
    await caught(lambda: get(db, a_vault(OLD), account))
    await caught(lambda: get(db, a_vault("new:" + base64.b64encode(b"z" * 32).decode()), account))
    await caught(lambda: get(db, a_vault(), replace(account, venue="x")))
    await caught(lambda: put(db, a_vault(), stranger, {"key": object(), "secret": SECRET}))  # pyright: ignore[reportArgumentType] - what a bug would do
    for given in ({"secret": SECRET}, {**GIVEN, SECRET: SECRET}, {**GIVEN, "key": SECRET + "\x07"}):
        try:
            checked(given, ("key", "secret"))
        except BadCredentials as error:
            found.append(error)
    envelope = Envelope(Keys(NEW), urandom)
    sealed = envelope.seal(SECRET.encode(), b"x")
    for wrong in (replace(sealed, key_id="none"), Sealed("new", b"", b""), replace(sealed, body=b"short")):
        try:
            envelope.open(wrong, b"x")
        except Unopened as error:
            found.append(error)
    return found


async def test_no_failure_shows_a_secret_or_a_key(db: Database, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    found = await failures(db)
    assert len(found) == 12
    for error in found:
        logging.getLogger("test").error("it failed", exc_info=error, extra={"error": error})
    told = [*("".join(traceback.format_exception(error)) for error in found), *map(repr, found), *map(str, found)]
    told += [repr(vars(error)) for error in found]
    told += [JsonFormatter().format(record) for record in caplog.records]
    shown = "\n".join([*told, caplog.text])
    for secret in (SECRET, GIVEN["key"], "n" * 32, NEW.partition(":")[2], OLD.partition(":")[2]):
        # A name that a caller sent is theirs to see again, as a problem's path.
        assert secret not in shown.replace(f"'path': '{SECRET}'", "")


async def test_opened_credentials_do_not_show_themselves(db: Database):
    vault, account = a_vault(), await an_account(db)
    await put(db, vault, account)
    async with db.read() as tx:
        kept = await vault.kept(tx, account)
    record = logging.LogRecord("x", logging.INFO, "x", 1, "x", None, None)
    record.secrets, record.kept = kept.secrets, kept
    shown = f"{kept!r} {kept.secrets} {Keys(NEW)!r} {[kept.secrets]} {JsonFormatter().format(record)}"
    assert SECRET not in shown
    assert repr(kept.secrets) == "Secrets(key, secret)"
    assert kept.secrets == Secrets(GIVEN)


# Over HTTP


@dataclass
class Http:
    caller: Caller
    db: Database
    account: Account

    @property
    def path(self) -> str:
        return f"/broker/accounts/{self.account.id}/credentials"

    async def told(self) -> bytes:
        async with self.db.read() as tx:
            return b"".join(bytes(row["value"]) for row in await tx.fetch(text("select value from outbox order by id")))


@pytest.fixture
async def http(database_url: str, db: Database) -> AsyncGenerator[Http]:
    clock = ManualClock(NOW)
    service = a_service(database_url, clock)
    needed = {"alpaca": ("key", "secret")}
    credentials = Credentials(
        a_vault(f"{NEW},{OLD}"), AccountStore(), lambda venue: needed[venue], clock=clock, new_id=new_id
    )
    service.serve([*handlers(credentials, service.door)])
    async with calling(service, clock) as caller:
        yield Http(caller, db, await an_account(db))


async def test_the_owner_sets_sees_and_forgets_credentials_and_values_never_come_out(
    http: Http, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    owner = http.account.user_id
    answers = [
        await http.caller.ask("PUT", http.path, owner, json={"secrets": GIVEN}),
        await http.caller.ask("GET", http.path, owner),
        await http.caller.ask("DELETE", http.path, owner),
        await http.caller.ask("GET", http.path, owner),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 204, 409]
    assert answers[1].json()["names"] == ["key", "secret"]
    assert answers[3].json()["error"]["code"] == "NO_CREDENTIALS"
    told = await http.told()
    assert b"set.credentials" in told
    assert b"forget.credentials" in told
    for secret in GIVEN.values():
        assert secret.encode() not in told + b"".join(answer.content for answer in answers)
        assert secret not in caplog.text


async def test_somebody_elses_account_is_not_there(http: Http):
    async def asked(method: str, **more: Any) -> tuple[int, str]:
        answer = await http.caller.ask(method, http.path, new_id(), **more)
        return answer.status_code, answer.json()["error"]["code"]

    await http.caller.ask("PUT", http.path, http.account.user_id, json={"secrets": GIVEN})
    assert await asked("GET") == await asked("DELETE") == (404, NoSuchAccount.code)
    assert await asked("PUT", json={"secrets": GIVEN}) == (404, NoSuchAccount.code)
    assert await asked("PUT", role="admin", json={"secrets": GIVEN}) == (404, NoSuchAccount.code)
    assert (await http.caller.ask("GET", http.path, http.account.user_id)).status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"secrets": {"key": "a"}}, "BAD_CREDENTIALS"),
        ({"secrets": {**GIVEN, "more": SECRET}}, "BAD_CREDENTIALS"),
        ({"secrets": {"key": SECRET, "secret": ""}}, "BAD_CREDENTIALS"),
        ({"secrets": {"key": SECRET, "secret": "a\nb"}}, "BAD_CREDENTIALS"),
        ({"secrets": {"key": SECRET, "secret": "x" * 5000}}, "BAD_CREDENTIALS"),
        ({"secrets": {}}, "VALIDATION_ERROR"),
        ({"secrets": {"key": {"nested": SECRET}}}, "VALIDATION_ERROR"),
        ({"secrets": SECRET}, "VALIDATION_ERROR"),
        ({"secrets": GIVEN, "other": SECRET}, "VALIDATION_ERROR"),
        ({"secrets": {"key": SECRET, "secret": "\x00"}}, "VALIDATION_ERROR"),
    ],
)
async def test_bad_credentials_are_refused_with_a_code_and_without_repeating_them(
    http: Http, body: Any, code: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    answer = await http.caller.ask("PUT", http.path, http.account.user_id, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    assert SECRET not in answer.text + caplog.text
    assert await rows(http.db) == []


async def test_a_closed_account_takes_none(http: Http):
    async with http.db.transaction() as tx:
        await AccountStore().close(tx, http.account.id, NOW)
    answer = await http.caller.ask("PUT", http.path, http.account.user_id, json={"secrets": GIVEN})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "ACCOUNT_CLOSED")


async def test_a_rotation_over_http_goes_through_all_slices(http: Http, database_url: str):
    for _ in range(4):
        await put(http.db, a_vault(OLD), await an_account(http.db))
    clock = ManualClock(NOW)
    service = a_service(database_url, clock)
    vault = a_vault(f"{NEW},{OLD}", slice_rows=2)
    credentials = Credentials(vault, AccountStore(), lambda _: (), clock=clock, new_id=new_id)
    done = await credentials.rotate(service.door, Actor(Identity(new_id(), "admin")), None)
    await service.db.close()
    assert (done.rewrapped, done.next, done.keys) == (4, None, {"new": 4})


async def test_an_administrator_rotates_and_nobody_else(http: Http):
    await put(http.db, a_vault(OLD), http.account)
    refused = await http.caller.ask("POST", "/broker/credentials/rotate", http.account.user_id, json={})
    assert refused.status_code == 403
    answer = await http.caller.ask("POST", "/broker/credentials/rotate", new_id(), "admin", json={})
    assert answer.json() == {"rewrapped": 1, "unreadable": [], "next": None, "keys": {"new": 1}}
    assert b"rotate.credentials" in await http.told()


async def test_the_tables_refuse_a_credential_without_its_account(db: Database):
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await put(db, a_vault(), Account(new_id(), new_id(), "alpaca", "paper"))
