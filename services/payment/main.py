"""Wires the payment service."""

from datetime import timedelta
from functools import partial

from services.payment import READS, consumers
from services.payment.adapters import evm
from services.payment.adapters.esplora import Esplora
from services.payment.adapters.rates import FixedRates, SpotRates
from services.payment.adapters.stripe_api import StripeApi, StripeWebhooks, check_key
from services.payment.domain.chains import Chain
from services.payment.domain.plans import Plan, Plans
from services.payment.domain.returns import Returns
from services.payment.domain.stripe import KINDS
from services.payment.ports import ChainReader
from services.payment.routes import checkout as checkout_routes
from services.payment.routes import crypto as crypto_routes
from services.payment.routes import ledger as ledger_routes
from services.payment.routes import refusals
from services.payment.routes import subscriptions as subscription_routes
from services.payment.routes import webhooks as webhook_routes
from services.payment.service.apply import Apply
from services.payment.service.audit import Audit
from services.payment.service.calls import Calls
from services.payment.service.catalogue import Catalogue, PriceChanges
from services.payment.service.changes import Changes
from services.payment.service.checkout import Checkouts
from services.payment.service.crypto import CryptoInvoices
from services.payment.service.crypto_watch import CryptoWatch
from services.payment.service.customers import Customers
from services.payment.service.doubles import Doubles
from services.payment.service.intake import Intake
from services.payment.service.invariants import Invariants
from services.payment.service.ledger import Ledger
from services.payment.service.manual import Manual
from services.payment.service.money import Payments
from services.payment.service.refresh import Appliers, Refresh
from services.payment.service.renewals import Reminders, Renewals
from services.payment.service.settlement import CryptoReceipt, Settlement
from services.payment.service.stops import Stops
from services.payment.service.subscriptions import Subscriptions
from services.payment.service.sweep import Sweep
from services.payment.settings import PaymentSettings
from services.payment.store.calls import CallStore
from services.payment.store.crypto import CryptoStore
from services.payment.store.customers import CustomerStore
from services.payment.store.ledger import LedgerStore
from services.payment.store.mirror import MirrorStore
from services.payment.store.money import MoneyStore
from services.payment.store.receipts import ReceiptStore
from services.payment.store.refreshes import RefreshStore
from services.payment.store.subscriptions import SubscriptionStore
from services.payment.store.webhooks import WebhookStore
from services.payment.workers import crypto as crypto_workers
from services.payment.workers.by_the_clock import by_the_clock
from services.payment.workers.customers import assertions, calls_retention
from services.payment.workers.lapses import lapses
from services.payment.workers.refresh import Refreshing
from services.payment.workers.sweep import SweepAtStart, retention, sweeps
from shared.clock import new_id
from shared.db import Tx
from shared.service import Environment, Service
from shared.work import Worker


def build(env: Environment) -> Service:
    """Build the service; nothing is opened before it starts. Raises UnsafeKey for a Stripe key of the wrong mode."""
    settings = PaymentSettings()
    service = Service("payment", env, READS)
    plans = Plans(Plan.model_validate(plan) for plan in settings.plans)
    store, mirror = SubscriptionStore(), MirrorStore()
    catalogue = Catalogue(plans, mirror)
    subscriptions = Subscriptions(store, catalogue, clock=service.clock, new_id=new_id)

    workers: list[Worker] = []

    def wake() -> None:
        for worker in workers:
            worker.wake()

    appliers = Appliers()
    refreshes = RefreshStore(new_id)
    refresh = Refresh(refreshes, mirror, store, appliers, clock=service.clock, new_id=new_id, wake=wake)
    grace = timedelta(days=settings.grace_days)
    applying = Apply(
        subscriptions, store, CustomerStore(), mirror, refresh, catalogue=catalogue, grace=grace, clock=service.clock
    )

    audit = Audit(service.door, clock=service.clock, new_id=new_id)
    calls = _calls(settings, env, service, refresh)
    customers = Customers(CustomerStore(), store, door=service.door, audit=audit, clock=service.clock, calls=calls)
    appliers.on("customer", customers.deleted)  # before the one that forgets whose it was
    applying.register(appliers)
    appliers.on("price", PriceChanges(mirror, refresh).price)
    appliers.on("customer", customers.linked)
    checkouts = Checkouts(
        catalogue,
        Returns(settings.return_origins, settings.return_url),
        store,
        customers,
        door=service.door,
        audit=audit,
        clock=service.clock,
        new_id=new_id,
        calls=calls,
    )
    changes = Changes(subscriptions, store, catalogue, door=service.door, audit=audit, clock=service.clock, calls=calls)

    ledger_store, money = LedgerStore(), MoneyStore()
    ledger = Ledger(ledger_store, service.clock)
    payments = Payments(
        money, store, ledger, subscriptions, mirror=mirror, want=refresh.want, catalogue=catalogue, clock=service.clock
    )
    payments.register(appliers)
    if calls is not None:
        Doubles(calls, mirror, store, subscriptions, door=service.door, audit=audit).register(appliers)
        Stops(calls, money, audit=audit).register(appliers)
    manual = Manual(
        store, money, subscriptions, plans, ledger, audit=audit, grace=grace, clock=service.clock, new_id=new_id
    )

    secrets = [secret.get_secret_value() for secret in settings.stripe_webhook_secrets or ()]
    webhooks = StripeWebhooks(secrets) if secrets else None
    intake = Intake(webhooks, WebhookStore(), service.door, service.clock)

    stripe = _stripe(settings, env, service)
    if stripe is not None:
        work = Refreshing(stripe, refresh, service.door).work(settings.stripe_concurrency)
        workers.append(Worker(work, service.door, service.clock, draw=env.random.random))
        service.work(workers[0])
        service.schedule(sweeps(Sweep(stripe, intake, refresh, mirror, door=service.door, clock=service.clock)))
        service.work(SweepAtStart(lambda job: service.scheduler.run_now(job)))  # noqa: PLW0108 - made when all are named

    renewals = Renewals(store, subscriptions, plans, service.door, grace=grace, clock=service.clock)
    reminders = Reminders(money, store, service.door, service.clock)
    invariants = Invariants(
        ledger_store,
        store,
        ledger,
        subscriptions,
        service.door,
        movements=None if stripe is None else partial(stripe.list, "balance_transaction"),
        want=refresh.want,
        clock=service.clock,
    )
    for job in (
        *by_the_clock(renewals, reminders, invariants),
        lapses(subscriptions, service.door),
        retention(refreshes, service.door, settings.keep_webhooks_months),
        assertions(customers),
        calls_retention(CallStore(), service.door),
    ):
        service.schedule(job)

    for consumer in consumers.tables(refresh, customers):
        service.consume(consumer)
    service.serve(
        [
            *webhook_routes.handlers(intake),
            *checkout_routes.handlers(checkouts, audit),
            *subscription_routes.handlers(subscriptions, changes, audit, service.door),
            *ledger_routes.handlers(manual, audit, ledger_store, service.door),
        ]
    )
    _crypto(service, settings, plans, subscriptions, audit, ledger.add_coins)
    service.app.after_exception.append(refusals.auditing(audit))  # the last: the app is made of all routes
    return service


def _calls(settings: PaymentSettings, env: Environment, service: Service, refresh: Refresh) -> Calls | None:
    """Return what writes at Stripe, with its worker and connections of its own; None where there is no key."""
    stripe = _stripe(settings, env, service)
    if stripe is None:
        return None

    async def mark(tx: Tx, kind: str, object_id: str) -> None:
        if kind in KINDS:
            await refresh.want(tx, [(kind, object_id)])

    calls = Calls(stripe, CallStore(), service.door, mark=mark, clock=service.clock, new_id=new_id)
    worker = Worker(calls.work(), service.door, service.clock, draw=env.random.random)
    calls.wake = worker.wake
    service.work(worker)
    return calls


def _stripe(settings: PaymentSettings, env: Environment, service: Service) -> StripeApi | None:
    """Return Stripe's API over connections of its own, None where there is no key."""
    if settings.stripe_key is None:
        return None
    key = settings.stripe_key.get_secret_value()
    check_key(key, env.settings.environment)
    api = StripeApi(key, base=settings.stripe_base, timeout_s=settings.stripe_timeout_s)
    service.closes(api)
    return api


def _crypto(  # noqa: PLR0917 - parts of `build`, which would be too long with it
    service: Service,
    settings: PaymentSettings,
    plans: Plans,
    subscriptions: Subscriptions,
    audit: Audit,
    receipt: CryptoReceipt,
) -> None:
    """Wire payment on chains. Without chains its routes say that it is not offered, and nothing is loaded for it."""
    chains = {chain.name: chain for chain in map(Chain.model_validate, settings.crypto_chains)}
    missing = sorted(chains.keys() - settings.crypto_urls.keys())
    if missing or len(chains) < len(settings.crypto_chains):
        raise ValueError(f"OPENBELL_PAYMENT_CRYPTO_URLS lacks {missing}" if missing else "two chains have one name")
    if len({chain.network_id for chain in chains.values()}) < len(chains):
        raise ValueError("a chain stands there twice: what comes in on it would count twice")
    clock = service.clock
    fixed, store, receipts = settings.crypto_rates_usd, CryptoStore(), ReceiptStore()
    rates = FixedRates(fixed, clock) if fixed else SpotRates(settings.crypto_rates_url, clock)
    settlement = Settlement(
        store,
        receipts,
        SubscriptionStore(),
        subscriptions=subscriptions,
        plans=plans,
        clock=clock,
        receipt=receipt,
    )
    invoices = CryptoInvoices(
        chains,
        store,
        receipts,
        SubscriptionStore(),
        plans=plans,
        rates=rates,
        depeg_limit=settings.crypto_depeg_limit,
        settlement=settlement,
        audit=audit,
        clock=clock,
        new_id=new_id,
    )
    watches = [
        CryptoWatch(
            chain,
            _reader(chain, settings.crypto_urls[chain.name].get_secret_value()),
            store,
            receipts,
            invoices=invoices,
            settlement=settlement,
            door=service.door,
            clock=clock,
        )
        for chain in chains.values()
    ]
    for watch in watches:
        service.schedule(crypto_workers.rounds(watch))
    service.closes(*watches, rates)
    service.serve([*crypto_routes.handlers(invoices, audit, service.door)])


def _reader(chain: Chain, url: str) -> ChainReader:
    if chain.kind == "bitcoin":
        return Esplora(url, chain.network, chain.assets[0].symbol)
    return evm.Evm(chain, lambda: evm.over_http(url))
