"""Wires the payment service."""

from datetime import timedelta
from functools import partial

from services.payment import READS, consumers
from services.payment.adapters.stripe_api import StripeApi, StripeWebhooks, check_key
from services.payment.domain.plans import Plan, Plans
from services.payment.routes import ledger as ledger_routes
from services.payment.routes import subscriptions as subscription_routes
from services.payment.routes import webhooks as webhook_routes
from services.payment.service.apply import Apply
from services.payment.service.intake import Intake
from services.payment.service.invariants import Invariants
from services.payment.service.ledger import Ledger
from services.payment.service.manual import Manual
from services.payment.service.money import Payments
from services.payment.service.refresh import Appliers, Refresh
from services.payment.service.renewals import Reminders, Renewals
from services.payment.service.subscriptions import Subscriptions
from services.payment.service.sweep import Sweep
from services.payment.settings import PaymentSettings
from services.payment.store.customers_of_stripe import StripeCustomers
from services.payment.store.ledger import LedgerStore
from services.payment.store.mirror import MirrorStore
from services.payment.store.money import MoneyStore
from services.payment.store.refreshes import RefreshStore
from services.payment.store.subscriptions import SubscriptionStore
from services.payment.store.webhooks import WebhookStore
from services.payment.workers.by_the_clock import by_the_clock
from services.payment.workers.lapses import lapses
from services.payment.workers.refresh import Refreshing, RefreshWorker
from services.payment.workers.sweep import SweepAtStart, retention, sweeps
from shared.clock import new_id
from shared.service import Environment, Service
from shared.work import Worker


def build(env: Environment) -> Service:
    """Build the service; nothing is opened before it starts. Raises UnsafeKey for a live key outside production."""
    settings = PaymentSettings()
    service = Service("payment", env, READS)
    plans = Plans(Plan.model_validate(plan) for plan in settings.plans)
    store, mirror = SubscriptionStore(), MirrorStore()
    subscriptions = Subscriptions(store, plans, clock=service.clock, new_id=new_id)

    workers: list[Worker] = []

    def wake() -> None:
        for worker in workers:
            worker.wake()

    appliers = Appliers()
    refreshes = RefreshStore(new_id)
    refresh = Refresh(refreshes, mirror, store, appliers, clock=service.clock, new_id=new_id, wake=wake)
    grace = timedelta(days=settings.grace_days)
    customers = StripeCustomers()
    applying = Apply(subscriptions, store, customers, mirror, refresh, plans=plans, grace=grace, clock=service.clock)
    applying.register(appliers)

    ledger_store, money = LedgerStore(), MoneyStore()
    ledger = Ledger(ledger_store, service.clock)
    Payments(money, store, ledger, subscriptions, plans=plans, clock=service.clock).register(appliers)
    manual = Manual(store, money, subscriptions, plans, ledger, grace=grace, clock=service.clock, new_id=new_id)

    secrets = [secret.get_secret_value() for secret in settings.stripe_webhook_secrets or ()]
    webhooks = StripeWebhooks(secrets) if secrets else None
    intake = Intake(webhooks, WebhookStore(), service.door, service.clock)

    stripe = _stripe(settings, env)
    if stripe is not None:
        work = Refreshing(stripe, refresh, service.door).work(settings.stripe_concurrency)
        workers.append(Worker(work, service.door, service.clock, draw=env.random.random))
        service.work(RefreshWorker(workers[0], stripe))
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
    for job in by_the_clock(renewals, reminders, invariants):
        service.schedule(job)

    for consumer in consumers.tables(refresh):
        service.consume(consumer)
    service.schedule(lapses(subscriptions, service.door))
    service.schedule(retention(refreshes, service.door, settings.keep_webhooks_months))
    service.serve([*webhook_routes.handlers(intake), *subscription_routes.handlers(subscriptions, service.door)])
    service.serve([*ledger_routes.handlers(manual, ledger_store, service.door, clock=service.clock, new_id=new_id)])
    return service


def _stripe(settings: PaymentSettings, env: Environment) -> StripeApi | None:
    """Return Stripe's API, None where there is no key."""
    if settings.stripe_key is None:
        return None
    key = settings.stripe_key.get_secret_value()
    check_key(key, env.settings.environment)
    return StripeApi(key, base=settings.stripe_base, timeout_s=settings.stripe_timeout_s)
