"""The whole service, started: jobs read the chain, invoices are paid, and Kafka hears of it."""

import contextlib
import json
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from deploy.local.kafka import RunningKafka
from services.payment.main import build
from shared.clock import utc_now
from shared.errors import NotFound
from shared.identity import HEADER, Identity, Signer
from shared.service import Environment
from shared.settings import SharedSettings
from tests.conftest import eventually
from tests.fakes.esplora import FakeEsplora

OURS = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"
CHAIN: dict[str, Any] = {
    "name": "bitcoin",
    "kind": "bitcoin",
    "network": "regtest",
    "assets": [{"symbol": "BTC", "decimals": 8}],
    "addresses": [OURS],
    "confirmations": [{"blocks": 1}],
}


async def test_a_payment_travels_from_the_chain_to_a_subscription_that_kafka_tells_of(
    settings: SharedSettings, clean_kafka: RunningKafka, monkeypatch: pytest.MonkeyPatch
):
    user = uuid4()
    async with FakeEsplora(utc_now().timestamp()) as esplora:
        esplora.mine()
        monkeypatch.setenv("OPENBELL_PAYMENT_CRYPTO_CHAINS", json.dumps([CHAIN]))
        monkeypatch.setenv("OPENBELL_PAYMENT_CRYPTO_URLS", json.dumps({"bitcoin": esplora.url}))
        monkeypatch.setenv("OPENBELL_PAYMENT_CRYPTO_RATES_USD", '{"BTC": "100000"}')
        service = build(Environment(settings))
        signer = Signer(settings.identity_secret.get_secret_value(), utc_now)
        transport = httpx.ASGITransport(app=cast("Any", service.app))
        await service.start()
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://payment") as http:

                async def call(method: str, path: str, **more: Any) -> httpx.Response:
                    token = signer.sign(Identity(user, "user"), audience="payment", request_id="r1")
                    return await http.request(method, path, headers={HEADER: token}, **more)

                made: dict[str, Any] = {}

                async def ordered() -> bool:
                    with contextlib.suppress(NotFound):  # until the scheduler has registered its jobs
                        await service.scheduler.run_now("crypto-bitcoin")
                    order = {"plan": "pro", "chain": "bitcoin", "asset": "BTC"}
                    answer = await call("POST", "/pay/crypto/invoices", json=order)
                    made.update(answer.json())
                    return answer.status_code == 201

                await eventually(ordered, 60)
                esplora.send({OURS: 29_000})
                esplora.mine()

                async def paid() -> bool:
                    await service.scheduler.run_now("crypto-bitcoin")
                    return (await call("GET", f"/pay/crypto/invoices/{made['id']}")).json()["state"] == "paid"

                await eventually(paid, 60)
                assert (await call("GET", "/pay/subscription")).json()["entitlements"] == ["pro"]
            heard = await hear(clean_kafka.bootstrap, "payment.subscriptions", "payment.payments")
        finally:
            await service.stop()
    assert heard["payment.subscriptions"]["entitlements"] == ["pro"]
    assert heard["payment.payments"]["currency"] == "BTC"
    assert {one["user_id"] for one in heard.values()} == {str(user)}


async def hear(bootstrap: str, *topics: str) -> dict[str, dict[str, Any]]:
    """Return the first event of each topic."""
    consumer = AIOKafkaConsumer(*topics, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    heard: dict[str, dict[str, Any]] = {}
    try:
        while len(heard) < len(topics):
            record = await consumer.getone()
            heard.setdefault(record.topic, json.loads(record.value or b"{}"))
    finally:
        await consumer.stop()
    return heard
