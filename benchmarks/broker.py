"""The brokerage as a process: how soon an order is at its venue, how many the paper venue takes, how long to reconcile.

    python -m benchmarks.broker

Soon: orders are posted at 100/s; from the answer (202) until the paper venue took the order (`came_at`, written in
its transaction), so the command's way over Apache Kafka, its check and the queue are in it. An order that was there
before its answer counts as zero. The baseline is Kafka alone at the same rate: a record sent until it is consumed.

Many: 200 callers submit orders to the paper venue alone, each the next when its last one is answered, which is after
its commit. And through the whole service: commands lie in Kafka before it looks; from the first order kept to the last
change of one. The baseline of both inserts a row for each order with asyncpg, one statement and commit each.

Reconcile: an account of 10,000 filled orders in 1,000 instruments, against a venue that answers from memory. Once all
of it is news, and once nothing is, which is what happens hourly. The baseline reads the same rows, and nothing else.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from statistics import median, quantiles
from typing import Any, Final, cast
from uuid import UUID

import asyncpg
import httpx
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.stack import row, servers, service, until
from deploy.local.stack import Stack
from services.broker import READS
from services.broker.adapters.paper.adapter import PaperAdapter
from services.broker.domain import shapes
from services.broker.domain.instruments import instrument
from services.broker.domain.orders import Execution, Leg, Order, Report, Terms
from services.broker.domain.tickets import Rules
from services.broker.ports import Account, Balance, Changes, Held, Update, Venue
from services.broker.service.books import Books
from services.broker.service.orders import Orders
from services.broker.service.reconcile import Reconcile
from services.broker.store.accounts import AccountStore
from services.broker.store.books import BookStore
from services.broker.store.orders import OrderStore
from shared import migrate
from shared.clock import new_id, utc_now
from shared.contracts.base import Event
from shared.contracts.broker import LegTerms, OrderRequested, OrderTerms
from shared.contracts.quotes import QuoteTaken
from shared.contracts.topics import TOPICS, Topic
from shared.identity import HEADER, Identity, Signer
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.record import headers_of
from shared.service import Environment, Service
from shared.settings import SharedSettings
from tests.infra import postgres_server

RATE: Final = 100
SECONDS: Final = 20
WARM: Final = 500
P99_MS: Final = 50.0
ACCOUNTS: Final = 200
CALLERS: Final = 200
MANY: Final = 5_000
WAITING: Final = 1_500  # more than a minute's worth would be refused: TOO_LATE
BAR: Final = 1_000
GOAL: Final = 3_000
ORDERS: Final = 10_000
POSITIONS: Final = 1_000
RECONCILE_S: Final = 2.0
ROUNDS: Final = 5
PAIRS: Final = tuple(f"{coin}/USD" for coin in ("BTC", "ETH", "SOL", "ADA", "DOT", "XRP", "LTC", "BCH"))  # never closed
BLANK: Final = Topic("bench.orders", partitions=8)
USER: Final = UUID(int=1, version=4)
ENV: Final = {
    "OPENBELL_BROKER_DUPLICATE_WINDOW_S": "0",
    "OPENBELL_BROKER_MAX_ORDERS_A_MINUTE": "100000",
    "OPENBELL_BROKER_QUOTE_AGE_S": "86400",
}

_ACCOUNT: Final = """
    insert into broker.accounts (id, user_id, venue, mode, name, created_at)
    values ($1, $2, 'paper', 'paper', 'bench', now())"""
_ENDED: Final = """
    select count(*) from broker.sendings where kind = 'submit' and status not in ('pending', 'claimed', 'started')"""
_REFUSED: Final = "select count(*) from broker.orders where state = 'rejected'"
_ORDER: Final = """
    insert into broker.orders (id, account_id, user_id, venue, state, symbols, terms, submits, seen, created_at,
        updated_at)
    values ($1, $2, $3, 'memory', 'accepted', $4, $5, 1, true, now(), now())"""


def run() -> list[dict[str, Any]]:
    """Return the figures."""
    with servers() as below:
        through = asyncio.run(_through(below))
    return [*through, *uvloop.run(_reconciling())]


# --- an order's way to the paper venue -------------------------------------------------------------


async def _through(below: Stack) -> list[dict[str, Any]]:
    address = KafkaAddress(below.kafka.bootstrap)
    await ensure_topics(address, [*TOPICS, BLANK])
    admin = await asyncpg.connect(below.admin_url)
    producer = address.writer("bench")
    await producer.start()
    accounts = [new_id() for _ in range(ACCOUNTS)]
    try:
        plain50, plain99 = _percentiles(await _plainly(address, producer))
        await admin.executemany(_ACCOUNT, [(one, USER) for one in accounts])
        async with service(below, "broker", **ENV) as (_, port):
            await _quote(admin, producer)
            p50, p99 = _percentiles(await _soon(below, admin, accounts, port))
        for number in range(WAITING):
            await producer.send(**_record(_asked(number, accounts)))
        await producer.flush()
        async with service(below, "broker", **ENV):
            through = await _many(admin)
        rate = await _alone(below, accounts)
        refused = await admin.fetchval(_REFUSED)
        raw = await _inserted(admin)
    finally:
        await producer.stop()
        await admin.close()
    metric = f"order accepted (202) to submitted at the venue, {RATE}/s (baseline: Kafka alone)"
    return [
        row(f"{metric}, p50", p50, "ms", baseline=plain50, holds=True),
        row(f"{metric}, p99", p99, "ms", baseline=plain99, bar=P99_MS, holds=p99 < P99_MS),
        row(
            f"orders through the paper venue, {CALLERS} callers (baseline: an insert each)",
            rate,
            "orders/s",
            baseline=raw,
            bar=BAR,
            goal=GOAL,
            holds=rate >= BAR,
        ),
        row("orders from Kafka through the service to that venue", through, "orders/s", baseline=raw, holds=True),
        row("orders refused on the way, of both", refused, "orders", bar=0, holds=not refused),
    ]


async def _quote(admin: "asyncpg.Connection[asyncpg.Record]", producer: AIOKafkaProducer) -> None:
    fields: dict[str, Any] = {"source": "simulator", "simulated": True, "close": None, "bid": 100.0, "ask": 100.02}
    for pair in PAIRS:
        now = utc_now()
        await producer.send_and_wait(**_record(QuoteTaken(id=new_id(), time=now, symbol=pair, as_of=now, **fields)))

    async def known() -> bool:
        return await admin.fetchval("select count(*) from broker.paper_books") == len(PAIRS)

    await until(known, 60)


async def _soon(
    below: Stack, admin: "asyncpg.Connection[asyncpg.Record]", accounts: list[UUID], port: int
) -> list[float]:
    """Post orders at the rate; return milliseconds from each answer until the venue had it."""
    total = WARM + RATE * SECONDS
    answered: dict[UUID, float] = {}
    signer = Signer(below.settings().identity_secret.get_secret_value(), utc_now)
    limits = httpx.Limits(max_connections=16, max_keepalive_connections=16)
    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, trust_env=False, limits=limits, timeout=60) as http:

        async def post(number: int) -> None:
            asked = _asked(number, accounts)
            body = asked.model_dump(mode="json", include={"account_id", "order_id", "terms"})
            token = signer.sign(Identity(USER, "user"), audience="broker", request_id="bench")
            answer = await http.post("/broker/orders", json=body, headers={HEADER: token})
            answer.raise_for_status()
            if number >= WARM:
                answered[asked.order_id] = time.time()

        async with asyncio.TaskGroup() as tasks:
            began = time.monotonic()
            for number in range(total):
                await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
                tasks.create_task(post(number))
    await _done(admin, total)
    came: list[Any] = await admin.fetch("select id, came_at from broker.paper_orders")
    at: dict[UUID, datetime] = {one["id"]: one["came_at"] for one in came}
    return [max(0.0, (at[name].timestamp() - then) * 1000) for name, then in answered.items() if name in at]


async def _plainly(address: KafkaAddress, producer: AIOKafkaProducer) -> list[float]:
    """Carry records through Kafka alone at the rate; return milliseconds."""
    consumer = AIOKafkaConsumer(bootstrap_servers=address.bootstrap, fetch_max_wait_ms=40, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(BLANK.name, number) for number in range(BLANK.partitions)])
    total, taken = RATE * 8, list[float]()

    async def send() -> None:
        began = time.monotonic()
        for number in range(total):
            await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            await producer.send(BLANK.name, str(time.time()).encode(), str(number).encode())

    sending = asyncio.create_task(send())
    try:
        while len(taken) < total:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                taken += [(time.time() - float(record.value or b"0")) * 1000 for record in records]
        await sending
    finally:
        await consumer.stop()
    return taken[RATE:]  # what is loaded at first use is loaded


async def _many(admin: "asyncpg.Connection[asyncpg.Record]") -> float:
    """Wait until all orders that lay in Kafka are at the venue; return how many a second."""
    before = WARM + RATE * SECONDS
    await _done(admin, before + WAITING)
    since: datetime = await admin.fetchval(
        "select min(created_at) from (select created_at from broker.orders order by created_at desc limit $1) as new",
        WAITING,
    )
    until_: datetime = await admin.fetchval("select max(updated_at) from broker.orders")
    return WAITING / (until_ - since).total_seconds()


async def _alone(below: Stack, accounts: list[UUID]) -> float:
    """Submit orders to the venue without the service around it; return how many a second it took."""
    made = Service("broker", Environment(below.settings()), READS)
    always = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    paper = PaperAdapter(made.db, made.clock, Rules(lambda _: always))
    venues = [paper.open(Account(one, USER, "paper", "paper"), {}) for one in accounts]
    orders = [Order(new_id(), accounts[n % ACCOUNTS], "paper", _domain(n)) for n in range(MANY)]
    numbered = iter(enumerate(orders))

    async def call() -> None:
        for number, order in numbered:
            told = await venues[number % ACCOUNTS].submit(order)
            assert told.kind == "accepted", told

    try:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CALLERS):
                tasks.create_task(call())
        return MANY / (time.perf_counter() - began)
    finally:
        await paper.close()
        await made.close()


async def _done(admin: "asyncpg.Connection[asyncpg.Record]", count: int) -> None:
    async def done() -> bool:
        return await admin.fetchval(_ENDED) >= count

    await until(done, 300, every_s=0.25)


async def _inserted(admin: "asyncpg.Connection[asyncpg.Record]") -> float:
    """Insert a row for each order; return how many a second."""
    await admin.execute("create table bench_orders (id uuid primary key, account_id uuid, terms jsonb, at timestamptz)")
    insert = await admin.prepare("insert into bench_orders values ($1, $2, $3, now())")
    terms = _terms(PAIRS[0]).model_dump_json()
    began = time.perf_counter()
    for _ in range(MANY):
        await insert.fetch(new_id(), USER, terms)
    return MANY / (time.perf_counter() - began)


def _terms(symbol: str) -> OrderTerms:
    """Return an order that rests in the book."""
    leg = LegTerms(symbol=symbol, side="buy")
    return OrderTerms(legs=(leg,), type="limit", time_in_force="gtc", quantity=Decimal("0.01"), limit=Decimal("99.00"))


def _domain(number: int) -> Terms:
    return shapes.to_domain(_terms(PAIRS[number % len(PAIRS)]))


def _asked(number: int, accounts: list[UUID]) -> OrderRequested:
    return OrderRequested(
        id=new_id(),
        time=utc_now(),
        account_id=accounts[number % len(accounts)],
        user_id=USER,
        order_id=new_id(),
        terms=_terms(PAIRS[number % len(PAIRS)]),
    )


def _record(event: Event) -> dict[str, Any]:
    headers = [(name.decode(), value) for name, value in headers_of(event, "/bench")]
    return {"topic": event.topic.name, "value": event.to_bytes(), "key": event.key.encode(), "headers": headers}


def _percentiles(taken: list[float]) -> tuple[float, float]:
    cuts = quantiles(taken, n=100)
    return cuts[49], cuts[98]


# --- reconcile ------------------------------------------------------------------------------------


class _Memory:
    """A venue where every order was filled."""

    def __init__(self, orders: list[Update], held: list[Held]) -> None:
        self._orders = orders
        self._held = held

    async def changes(self, since: datetime) -> Changes:
        del since
        return Changes(self._orders)

    async def positions(self) -> list[Held]:
        return self._held

    async def balance(self) -> Balance:
        return Balance(Decimal(100_000), Decimal(100_000))


async def _reconciling() -> list[dict[str, Any]]:
    with postgres_server() as dsn:
        await migrate.upgrade_all(dsn)
        admin = await asyncpg.connect(dsn)
        account = Account(new_id(), USER, "memory", "paper")
        venue = await _account(admin, account)
        async with _reconciler(dsn) as reconcile:
            news = await _timed(lambda: reconcile.run(account, venue))
            again = [await _timed(lambda: reconcile.run(account, venue)) for _ in range(ROUNDS)]
        raw = median([await _timed(lambda: _read(admin, account.id)) for _ in range(ROUNDS)])
        held = await admin.fetchval("select count(*) from broker.positions where quantity = 10")
        flags = await admin.fetchval("select count(*) from broker.flags")
        assert (held, flags) == (POSITIONS, 0), (held, flags)
        await admin.close()
    took, unit = median(again), "s (bar: seconds)"
    what = f"reconcile {ORDERS:,} orders and {POSITIONS:,} positions"
    return [
        row(f"{what}, nothing new", took, unit, baseline=raw, bar=RECONCILE_S, holds=took < RECONCILE_S),
        row(f"{what}, every order was filled meanwhile", news, "s", baseline=raw, holds=True),
    ]


async def _account(admin: "asyncpg.Connection[asyncpg.Record]", account: Account) -> Venue:
    """Make the account with its working orders; return the venue where all of them were filled."""
    await admin.execute(_ACCOUNT, account.id, account.user_id)
    symbols = [f"{chr(65 + n // 676 % 26)}{chr(65 + n // 26 % 26)}{chr(65 + n % 26)}X" for n in range(POSITIONS)]
    at = datetime.now(UTC) - timedelta(hours=1)
    rows: list[tuple[Any, ...]] = []
    updates: list[Update] = []
    for number in range(ORDERS):
        symbol = symbols[number % POSITIONS]
        terms = Terms((Leg(instrument(symbol), "buy"),), "limit", "day", quantity=Decimal(1), limit=Decimal(100))
        name = new_id()
        rows.append((name, account.id, account.user_id, [symbol], shapes.to_contract(terms).model_dump_json()))
        done = Execution(f"x{number}", Decimal(1), Decimal(100), at + timedelta(milliseconds=number))
        updates.append(Update(name, Report("filled", (done,), looked_up=True, venue_order_id=f"v{number}")))
    await admin.executemany(_ORDER, rows)
    held = [Held(instrument(symbol), Decimal(ORDERS // POSITIONS)) for symbol in symbols]
    return cast("Venue", _Memory(updates, held))


@asynccontextmanager
async def _reconciler(dsn: str) -> AsyncGenerator[Reconcile]:
    settings = SharedSettings(database_url=dsn, kafka_bootstrap=os.environ.get("OPENBELL_KAFKA_BOOTSTRAP", "unused:9"))
    made = Service("broker", Environment(settings), READS)
    books = Books(BookStore(), OrderStore(), clock=made.clock, new_id=new_id)
    orders = Orders(OrderStore(), books, clock=made.clock, new_id=new_id)
    try:
        yield Reconcile(orders, books, AccountStore(), BookStore(), door=made.door, clock=made.clock, new_id=new_id)
    finally:
        await made.close()


async def _timed(what: Callable[[], Any]) -> float:
    began = time.perf_counter()
    await what()
    return time.perf_counter() - began


async def _read(admin: "asyncpg.Connection[asyncpg.Record]", account_id: UUID) -> None:
    await admin.fetch("select * from broker.orders where account_id = $1", account_id)
    await admin.fetch("select * from broker.positions where account_id = $1", account_id)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
