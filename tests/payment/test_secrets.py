"""Secrets and card data are nowhere: not in logs, events, error answers, parked jobs or tables, whatever goes wrong."""

import json
import logging
import re
from collections.abc import AsyncGenerator

import pytest

from shared.logs import JsonFormatter
from tests.fakes.stripe import FakeStripe, Fault
from tests.payment.inprocess import InProcess, started
from tests.payment.lives import Life

KEY = "sk_test_NobodyMaySeeThisKey9f3a"
OLD_SECRET = "whsec_NobodyMaySeeThisOldSecret77c1"
NEW_SECRET = "whsec_NobodyMaySeeThisNewSecret5d20"
CARD = "4000056655665556"
CVC = "cvc-981"
NEVER = (KEY, OLD_SECRET, NEW_SECRET, CARD, CVC, "NobodyMaySeeThis")
CLIENT_SECRET = re.compile(r"pi_\w+_secret_\w+")


@pytest.fixture
async def service(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[InProcess]:
    with FakeStripe(key=KEY, webhook_secret=NEW_SECRET) as fake:
        product = fake.price(2900, price_id="price_pro")["product"]
        fake.price(5900, product=product, price_id="price_max")
        secrets = f"{OLD_SECRET},{NEW_SECRET}"
        running = started(fake, database_url, monkeypatch, STRIPE_WEBHOOK_SECRETS=secrets, STRIPE_TIMEOUT_S="0.3")
        yield running
        await running.close()


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


async def test_nothing_secret_is_told_kept_or_logged_when_all_goes_wrong(
    service: InProcess, logs: pytest.LogCaptureFixture
) -> None:
    fake = service.fake
    (user_id,) = await service.users(1)
    life = Life(fake, user_id, "")
    life.begin()
    life.buy()
    fake.refund(life.charge["id"], 500)
    answers = [await _refused(service, number) for number in range(6)]
    for fault in (Fault(500), Fault(429), Fault(429, retry=True), Fault(0), Fault(500, effect=True)):
        fake.fail("GET", "/v1/.*", fault)
    await service.deliver(fake.events)
    await service.settle(wholly=True)
    fake.wire._secret_key = "another"  # our key was revoked
    await service.deliver([fake.api.books.emit("customer.updated", fake.get("customer", life.customer))])
    await service.settle()
    fake.wire._secret_key = KEY
    await service.settle(wholly=True)

    assert await service.rows("select status from subscriptions") == [{"status": "active"}]
    assert {row["status"] for row in await service.rows("select status from refreshes")} == {"done"}
    kept = await _database(service)
    told = json.dumps(service.told)
    logged = _logged(logs)
    assert {0, 401, 429, 500} <= {request.status for request in fake.requests}, "what should have gone wrong did not"
    for place, text in {"answers": "".join(answers), "database": kept, "events": told, "logs": logged}.items():
        for secret in NEVER:
            assert secret not in text, f"{secret} is in the {place}"
    for text in ("".join(answers), told, logged):
        assert CLIENT_SECRET.search(text) is None
    assert CLIENT_SECRET.search(json.dumps(fake.events)), "there was none to be seen"


async def test_what_holds_secrets_does_not_show_them(service: InProcess) -> None:
    from services.payment.settings import PaymentSettings  # noqa: PLC0415 - read in the service's environment

    settings = PaymentSettings()
    assert settings.stripe_key is not None
    assert settings.stripe_key.get_secret_value() == KEY
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert not any(secret in shown for secret in NEVER)
    for asked in service.asked:
        assert not any(secret in repr(asked) for secret in NEVER)


async def _refused(service: InProcess, number: int) -> str:
    """Post what is not taken, full of things that must not be shown again; return the answer."""
    fake = service.fake
    leak = {"card": {"number": CARD, "cvc": CVC}, "key": KEY}
    event = {"id": "evt_leak", "object": "event", "type": "x", "created": fake.now, "data": {"object": leak}}
    body = json.dumps(event).encode()
    good = fake.sign(body, at=fake.now)
    posts: list[tuple[bytes, dict[str, str]]] = [
        (body, fake.sign(body, at=fake.now, secret="whsec_wrong")),
        (body, fake.sign(body, at=fake.now - 4_000)),
        (body, {"stripe-signature": f"t=1,v1={NEW_SECRET}"}),
        (body[:-9], good),
        (b"[]" + CARD.encode(), fake.sign(b"[]" + CARD.encode(), at=fake.now)),
        (body * 9_000, good),
    ]
    status, answer = await service.post(*posts[number])
    assert 400 <= status < 500, answer
    return json.dumps(answer)


async def _database(service: InProcess) -> str:
    """Return all of the service's tables as text, bytes decoded."""
    tables = await service.rows(
        """select c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
           where n.nspname = 'payment' and c.relkind in ('r', 'p') and not c.relispartition"""
    )
    assert {"webhooks", "refreshes", "failed_jobs", "outbox"} <= {table["name"] for table in tables}
    found: list[str] = []
    for table in tables:
        for row in await service.rows(f'select * from "{table["name"]}"'):
            found += [
                value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in row.values()
            ]
    return "\n".join(found)


def _logged(logs: pytest.LogCaptureFixture) -> str:
    """Return what was logged, by our formatter and by hand: extra fields count."""
    lines = [str(vars(record)) for record in logs.records]
    return "\n".join([*lines, *(JsonFormatter().format(record) for record in logs.records), logs.text])
