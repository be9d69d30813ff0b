"""Wires the payment service."""

from datetime import timedelta

from services.payment import READS, consumers
from services.payment.adapters.stripe_api import StripeApi, StripeWebhooks, check_key
from services.payment.domain.plans import Plan, Plans
from services.payment.domain.returns import Returns
from services.payment.domain.stripe import KINDS
from services.payment.routes import checkout as checkout_routes
from services.payment.routes import subscriptions as subscription_routes
from services.payment.routes import webhooks as webhook_routes
from services.payment.service.apply import Apply
from services.payment.service.audit import Audit
from services.payment.service.calls import Calls
from services.payment.service.changes import Changes
from services.payment.service.checkout import Checkouts
from services.payment.service.customers import Customers
from services.payment.service.doubles import Doubles
from services.payment.service.intake import Intake
from services.payment.service.refresh import Appliers, Refresh
from services.payment.service.subscriptions import Subscriptions
from services.payment.service.sweep import Sweep
from services.payment.settings import PaymentSettings
from services.payment.store.calls import CallStore
from services.payment.store.customers import CustomerStore
from services.payment.store.customers_of_stripe import StripeCustomers
from services.payment.store.mirror import MirrorStore
from services.payment.store.refreshes import RefreshStore
from services.payment.store.subscriptions import SubscriptionStore
from services.payment.store.webhooks import WebhookStore
from services.payment.workers.customers import assertions, calls_retention
from services.payment.workers.lapses import lapses
from services.payment.workers.refresh import Refreshing, RefreshWorker
from services.payment.workers.sweep import SweepAtStart, retention, sweeps
from shared.clock import new_id
from shared.db import Tx
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
    applying = Apply(
        subscriptions, store, StripeCustomers(), mirror, refresh, plans=plans, grace=grace, clock=service.clock
    )

    audit = Audit(service.door, clock=service.clock, new_id=new_id)
    calls = _calls(settings, env, service, refresh)
    customers = Customers(CustomerStore(), store, door=service.door, audit=audit, clock=service.clock, calls=calls)
    appliers.on("customer", customers.deleted)  # before the one that forgets whose it was
    applying.register(appliers)
    appliers.on("customer", customers.linked)
    if calls is not None:
        doubles = Doubles(calls, CustomerStore(), store, door=service.door, audit=audit)
        appliers.on("subscription", doubles.applied)
    returns = Returns(settings.return_origins, settings.return_url)
    checkouts = Checkouts(
        plans,
        returns,
        store,
        customers,
        door=service.door,
        audit=audit,
        clock=service.clock,
        new_id=new_id,
        calls=calls,
    )
    changes = Changes(subscriptions, store, plans, door=service.door, audit=audit, clock=service.clock, calls=calls)

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

    for consumer in consumers.tables(refresh, customers):
        service.consume(consumer)
    service.schedule(lapses(subscriptions, service.door))
    service.schedule(retention(refreshes, service.door, settings.keep_webhooks_months))
    service.schedule(assertions(customers))
    service.schedule(calls_retention(CallStore(), service.door))
    service.serve(
        [
            *webhook_routes.handlers(intake),
            *checkout_routes.handlers(checkouts, audit),
            *subscription_routes.handlers(subscriptions, changes, audit, service.door),
        ]
    )
    return service


def _calls(settings: PaymentSettings, env: Environment, service: Service, refresh: Refresh) -> Calls | None:
    """Return what writes at Stripe, with its worker and connections of its own; None where there is no key."""
    stripe = _stripe(settings, env)
    if stripe is None:
        return None

    async def mark(tx: Tx, kind: str, object_id: str) -> None:
        if kind in KINDS:
            await refresh.want(tx, [(kind, object_id)])

    calls = Calls(stripe, CallStore(), service.door, mark=mark, clock=service.clock, new_id=new_id)
    worker = Worker(calls.work(), service.door, service.clock, draw=env.random.random)
    calls.wake = worker.wake
    service.work(RefreshWorker(worker, stripe))
    return calls


def _stripe(settings: PaymentSettings, env: Environment) -> StripeApi | None:
    """Return Stripe's API, None where there is no key."""
    if settings.stripe_key is None:
        return None
    key = settings.stripe_key.get_secret_value()
    check_key(key, env.settings.environment)
    return StripeApi(key, base=settings.stripe_base, timeout_s=settings.stripe_timeout_s)
