"""The routes of payment by crypto, over the app that the service serves."""

import json
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from services.payment.main import build
from shared.errors import Transient
from shared.identity import HEADER, Identity, Signer
from shared.service import Environment, Service
from shared.settings import SharedSettings
from tests.conftest import ManualClock
from tests.fakes.esplora import FakeEsplora

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OURS = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"
EVM = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
KEY = "s3cret-api-key"
ROOT = Path(__file__).parents[2]

BITCOIN: dict[str, Any] = {
    "name": "bitcoin",
    "kind": "bitcoin",
    "network": "regtest",
    "assets": [{"symbol": "BTC", "decimals": 8}],
    "shared_address": OURS,
    "confirmations": [{"blocks": 1}],
    "final_blocks": 2,
}
ETHEREUM: dict[str, Any] = {
    "name": "ethereum",
    "kind": "evm",
    "chain_id": 1,
    "shared_address": EVM,
    "assets": [{"symbol": "ETH", "decimals": 18}, {"symbol": "USDC", "decimals": 6, "contract": EVM, "stable": True}],
}
ORDER = {"plan": "pro", "chain": "bitcoin", "asset": "BTC"}


class Client:
    def __init__(self, service: Service, http: httpx.AsyncClient, clock: ManualClock, esplora: FakeEsplora) -> None:
        self.service, self.clock, self.esplora, self._http = service, clock, esplora, http
        self._signer = Signer(service.settings.identity_secret.get_secret_value(), clock)

    async def __call__(self, method: str, path: str, user: UUID, **more: Any) -> httpx.Response:
        headers = more.pop("headers", {})
        identity = Identity(user, more.pop("role", "user"))
        token = self._signer.sign(identity, audience="payment", request_id="r1")
        return await self._http.request(method, path, headers={HEADER: token, **headers}, **more)

    async def order(self, user: UUID, **more: Any) -> httpx.Response:
        return await self("POST", "/pay/crypto/invoices", user, json=ORDER | more)

    async def round(self, chain: str = "bitcoin") -> None:
        [job] = [job for job in self.service._jobs if job.name == f"crypto-{chain}"]
        await job.run(self.clock())

    async def rows(self, statement: str) -> list[asyncpg.Record]:
        async with self.service.db.read() as tx:
            return await tx.connection.fetch(statement)

    async def audited(self) -> list[dict[str, Any]]:
        rows = await self.rows("select value from outbox where topic = 'api.audit' order by id")
        return [json.loads(row["value"]) for row in rows]


@asynccontextmanager
async def served(database_url: str, monkeypatch: pytest.MonkeyPatch, *chains: dict[str, Any]) -> AsyncGenerator[Client]:
    """The service as main builds it, not started: it serves HTTP without Kafka."""
    clock = ManualClock(NOW)
    async with FakeEsplora(NOW.timestamp()) as esplora:
        urls = {chain["name"]: f"{esplora.url}?key={KEY}" if chain is ETHEREUM else esplora.url for chain in chains}
        monkeypatch.setenv("OPENBELL_PAYMENT_CRYPTO_CHAINS", json.dumps(chains))
        monkeypatch.setenv("OPENBELL_PAYMENT_CRYPTO_URLS", json.dumps(urls))
        monkeypatch.setenv("OPENBELL_PAYMENT_CRYPTO_RATES_USD", '{"BTC": "100000", "ETH": 3000}')
        service = build(Environment(SharedSettings(database_url=database_url), clock))
        transport = httpx.ASGITransport(app=cast("Any", service.app))
        async with httpx.AsyncClient(transport=transport, base_url="http://payment") as http:
            yield Client(service, http, clock, esplora)
        await service.close()


@pytest.fixture
async def client(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    async with served(database_url, monkeypatch, BITCOIN, ETHEREUM) as built:
        await built.round()
        yield built


async def test_an_invoice_says_what_to_pay_where_until_when_and_what_to_do(client: Client):
    user = uuid4()
    answer = await client.order(user, amount_usd="29.00", refund_address="2MzQwSSnBHWHqSAqtTVQ6v47XtaisrJa1Vc")
    assert answer.status_code == 201
    made = answer.json()
    assert (made["state"], made["actions"]) == ("new", ["pay", "tell_transaction"])
    assert (made["amount"], made["address"], made["exact"]) == ("0.00029000", OURS, True)
    assert made["pay_uri"] == f"bitcoin:{OURS}?amount=0.00029000"
    assert made["expires_at"] == "2026-03-01T12:15:00Z"
    assert made["refund_address"] == "2MzQwSSnBHWHqSAqtTVQ6v47XtaisrJa1Vc"
    client.esplora.send({OURS: 29_000})
    client.esplora.mine()
    await client.round()
    shown = (await client("GET", f"/pay/crypto/invoices/{made['id']}", user)).json()
    assert (shown["state"], shown["actions"], shown["missing"]) == ("paid", [], "0.00000000")
    assert [(one["amount"], one["status"], one["confirmations"]) for one in shown["receipts"]] == [
        ("0.00029000", "mined", 1)
    ]
    assert [one["state"] for one in shown["history"]] == ["paid"]
    assert shown["pay_uri"] is None
    subscription = (await client("GET", "/pay/subscription", user)).json()
    assert (subscription["provider"], subscription["entitlements"]) == ("crypto", ["pro"])
    [made_audit] = await client.audited()
    assert (made_audit["action"], made_audit["actor"]) == ("create.crypto_invoice", str(user))


async def test_an_invoice_is_made_once_for_one_idempotency_key(client: Client):
    user, headers = uuid4(), {"idempotency-key": "k1"}
    one = await client("POST", "/pay/crypto/invoices", user, json=ORDER, headers=headers)
    two = await client("POST", "/pay/crypto/invoices", user, json=ORDER, headers=headers)
    assert one.json() == two.json()
    assert two.headers["idempotent-replayed"] == "true"
    assert len(await client.rows("select * from crypto_invoices")) == 1


async def test_users_reach_only_their_own_invoices(client: Client):
    owner, stranger = uuid4(), uuid4()
    made = (await client.order(owner)).json()
    path = f"/pay/crypto/invoices/{made['id']}"
    assert (await client("GET", path, owner)).status_code == 200
    assert (await client("GET", path, stranger)).status_code == 404
    told = await client("POST", f"{path}/transaction", stranger, json={"transaction": "ab" * 32})
    assert told.status_code == 404
    assert (await client("GET", "/pay/crypto/invoices", stranger)).json() == {"invoices": [], "next": None}


async def test_invoices_come_newest_first_in_pages(client: Client):
    user, made = uuid4(), list[str]()
    for _ in range(3):
        made.insert(0, (await client.order(user)).json()["id"])
        client.clock.advance(1)
    first = (await client("GET", "/pay/crypto/invoices?limit=2", user)).json()
    second = (await client("GET", f"/pay/crypto/invoices?limit=2&before={first['next']}", user)).json()
    assert [one["id"] for one in first["invoices"] + second["invoices"]] == made
    assert second["next"] is None
    assert (await client("GET", "/pay/crypto/invoices?before=x", user)).status_code == 422


@pytest.mark.parametrize(
    ("wrong", "status", "code"),
    [
        ({"plan": "platinum"}, 404, "NOT_FOUND"),
        ({"chain": "dogecoin"}, 422, "UNKNOWN_CHAIN"),
        ({"asset": "DOGE"}, 422, "UNKNOWN_CURRENCY"),
        ({"asset": "btc"}, 422, "UNKNOWN_CURRENCY"),
        ({"asset": ""}, 422, "UNKNOWN_CURRENCY"),
        ({"amount_usd": 0}, 422, "AMOUNT_REFUSED"),
        ({"amount_usd": -29}, 422, "AMOUNT_REFUSED"),
        ({"amount_usd": "28.99"}, 422, "AMOUNT_REFUSED"),
        ({"amount_usd": "1e300"}, 422, "AMOUNT_REFUSED"),
        ({"amount_usd": "NaN"}, 422, "AMOUNT_REFUSED"),
        ({"amount_usd": "sNaN"}, 422, "AMOUNT_REFUSED"),
        ({"amount_usd": "-sNaN"}, 422, "AMOUNT_REFUSED"),
        ({"amount_usd": "1e99999999"}, 422, "AMOUNT_REFUSED"),
        ({"amount_usd": "Infinity"}, 422, "AMOUNT_REFUSED"),
        ({"refund_address": EVM}, 422, "ADDRESS_REFUSED"),
        ({"refund_address": "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"}, 422, "ADDRESS_REFUSED"),
        ({"refund_address": "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt081"}, 422, "ADDRESS_REFUSED"),
        ({"chain": "ethereum", "asset": "ETH", "refund_address": EVM.lower()}, 422, "ADDRESS_REFUSED"),
        ({"chain": "ethereum", "asset": "ETH", "refund_address": OURS}, 422, "ADDRESS_REFUSED"),
    ],
)
async def test_a_bad_order_is_refused_with_a_code_and_audited(
    client: Client, wrong: dict[str, Any], status: int, code: str
):
    user = uuid4()
    answer = await client.order(user, **wrong)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert await client.rows("select * from crypto_invoices") == []
    [told] = await client.audited()
    assert (told["action"], told["actor"]) == ("refuse.create.crypto_invoice", str(user))
    assert told["details"]["code"] == code


async def test_a_body_that_is_no_order_is_refused(client: Client):
    for body in ({}, {**ORDER, "more": 1}, {**ORDER, "amount_usd": "many"}, {**ORDER, "plan": "p" * 65}):
        answer = await client("POST", "/pay/crypto/invoices", uuid4(), json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "VALIDATION_ERROR")


async def test_an_amount_of_very_many_digits_is_refused_and_kept_nowhere(client: Client):
    for body in (
        json.dumps(ORDER | {"amount_usd": "1" * 900_000}),
        json.dumps(ORDER)[:-1] + ', "amount_usd": ' + "1" * 41 + "}",
    ):
        answer = await client("POST", "/pay/crypto/invoices", uuid4(), content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "VALIDATION_ERROR")
        assert len(answer.content) < 1000
    told = await client.audited()
    assert [one["action"] for one in told] == ["refuse.request"] * 2
    assert all(len(str(one)) < 1000 for one in told)


async def test_a_chain_that_was_never_read_takes_no_invoice(client: Client):
    answer = await client.order(uuid4(), chain="ethereum", asset="USDC")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "CHAIN_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1


async def test_open_invoices_are_limited(client: Client):
    user = uuid4()
    for _ in range(3):
        assert (await client.order(user)).status_code == 201
    answer = await client.order(user)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "TOO_MANY_INVOICES")
    for _ in range(2):
        client.clock.advance(901)
        await client.round()
        assert (await client.order(user)).status_code == 201
    client.clock.advance(901)
    await client.round()
    answer = await client.order(user)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "RATE_LIMITED")
    assert int(answer.headers["retry-after"]) == 7 * 86400 + 900 - 3 * 901
    assert (await client.order(uuid4())).status_code == 201
    client.clock.advance(7 * 86400)
    await client.round()
    assert (await client.order(user)).status_code == 201


async def test_an_expired_invoice_says_so_before_a_round_has_seen_it(client: Client):
    user = uuid4()
    made = (await client.order(user)).json()
    client.clock.advance(900)
    shown = (await client("GET", f"/pay/crypto/invoices/{made['id']}", user)).json()
    assert (shown["state"], shown["actions"]) == ("expired", ["new_invoice", "tell_transaction"])
    client.clock.advance(8 * 86400)
    await client.round()
    shown = (await client("GET", f"/pay/crypto/invoices/{made['id']}", user)).json()
    assert (shown["state"], shown["actions"]) == ("expired", ["new_invoice"])


async def test_a_transaction_is_told_and_a_bad_one_refused(client: Client):
    user = uuid4()
    made = (await client.order(user)).json()
    path = f"/pay/crypto/invoices/{made['id']}/transaction"
    for bad in ("", "0x" + "ab" * 32, "ab" * 31, "g" * 64):
        answer = await client("POST", path, user, json={"transaction": bad})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "TRANSACTION_REFUSED")
    told = await client("POST", path, user, json={"transaction": "AB" * 32})
    assert told.status_code == 202
    assert [(one["transaction"], one["result"]) for one in told.json()["told"]] == [("ab" * 32, "waiting")]
    actions = [one["action"] for one in await client.audited()]
    assert actions.count("refuse.tell.crypto_transaction") == 4
    assert actions[-1] == "tell.crypto_transaction"


async def test_an_administrator_says_whose_an_unmatched_payment_is(client: Client):
    user, admin = uuid4(), uuid4()
    made = (await client.order(user)).json()
    tx = client.esplora.send({OURS: 29_500})
    client.esplora.mine()
    await client.round()
    assert (await client("GET", "/pay/crypto/unmatched", user)).status_code == 403
    [stray] = (await client("GET", "/pay/crypto/unmatched", admin, role="admin")).json()
    assert (stray["transaction"], stray["base_units"], stray["index"]) == (tx, "29500", 0)
    body = {"chain": "bitcoin", "transaction": tx, "index": 0, "invoice_id": made["id"]}
    path = "/pay/crypto/unmatched/assign"
    assert (await client("POST", path, user, json=body)).status_code == 403
    assert (await client("POST", path, admin, role="admin", json=body)).status_code == 200
    await client.round()
    shown = (await client("GET", f"/pay/crypto/invoices/{made['id']}", user)).json()
    assert shown["state"] == "paid_over"
    assert (await client("GET", "/pay/crypto/unmatched", admin, role="admin")).json() == []
    again = await client("POST", path, admin, role="admin", json=body)
    assert again.status_code == 409
    missing = await client("POST", path, admin, role="admin", json=body | {"index": 5})
    assert missing.status_code == 404


async def test_a_payment_that_the_chain_takes_back_leaves_the_ledger_with_nothing(client: Client):
    user = uuid4()
    await client.order(user)
    client.esplora.mine()
    tx = client.esplora.send({OURS: 29_000})
    client.esplora.mine()
    await client.round()
    account = "select coalesce(sum(amount), 0) as held from ledger_postings where account = 'assets:crypto'"
    assert [int(row["held"]) for row in await client.rows(account)] == [29_000]
    client.esplora.reorganise(1)
    client.esplora.forget(tx)
    await client.round()
    client.clock.advance(3601)
    await client.round()
    assert [int(row["held"]) for row in await client.rows(account)] == [0]
    assert (await client("GET", "/pay/subscription", user)).json()["entitlements"] == []


async def test_what_can_be_paid_with_is_listed(client: Client):
    listed = (await client("GET", "/pay/crypto/assets", uuid4())).json()
    assert [(one["chain"], one["asset"]) for one in listed] == [
        ("bitcoin", "BTC"),
        ("ethereum", "ETH"),
        ("ethereum", "USDC"),
    ]


async def test_without_a_chain_crypto_is_not_offered(database_url: str, monkeypatch: pytest.MonkeyPatch):
    async with served(database_url, monkeypatch) as client:
        answer = await client.order(uuid4())
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "PAYMENT_WAY_NOT_CONFIGURED")
        assert (await client("GET", "/pay/crypto/assets", uuid4())).json() == []
        assert [job.name for job in client.service._jobs if job.name.startswith("crypto")] == []


async def test_a_nodes_address_is_in_no_error_and_no_log(client: Client, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    with pytest.raises(Transient) as raised:
        await client.round("ethereum")
    assert raised.value.__cause__ is None
    told = f"{raised.value} {raised.value.details} {client.service.settings!r}"
    ours = [record for record in caplog.records if record.name != "aiohttp.access"]  # that is the stand-in's
    assert KEY not in told + " ".join(record.getMessage() for record in ours)


@pytest.mark.parametrize(
    ("chains", "urls"),
    [
        ([BITCOIN], {}),
        ([BITCOIN, BITCOIN], {"bitcoin": f"http://x/{KEY}"}),
        ([BITCOIN, BITCOIN | {"name": "again"}], {"bitcoin": f"http://x/{KEY}", "again": f"http://x/{KEY}"}),
        ([ETHEREUM, ETHEREUM | {"name": "again"}], {"ethereum": f"http://x/{KEY}", "again": f"http://x/{KEY}"}),
        ([{"name": "x"}], {"x": f"http://x/{KEY}"}),
    ],
)
def test_a_configuration_that_cannot_work_stops_the_start_without_telling_addresses(
    chains: Any, urls: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENBELL_PAYMENT_CRYPTO_CHAINS", json.dumps(chains))
    monkeypatch.setenv("OPENBELL_PAYMENT_CRYPTO_URLS", json.dumps(urls))
    with pytest.raises(ValueError) as raised:
        build(Environment(SharedSettings()))
    assert KEY not in str(raised.value)


def test_nothing_of_a_chain_is_loaded_where_none_is_configured():
    code = (
        "import sys; from services.payment.main import build; from shared.service import Environment\n"
        "build(Environment()); print([name for name in ('web3', 'aiohttp', 'eth_utils') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
