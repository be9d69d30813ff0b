"""Wires the payment service."""

from services.payment import READS, workers
from services.payment.domain.plans import Plan, Plans
from services.payment.routes import subscriptions as subscription_routes
from services.payment.service.subscriptions import Subscriptions
from services.payment.settings import PaymentSettings
from services.payment.store.subscriptions import SubscriptionStore
from shared.clock import new_id
from shared.service import Environment, Service


def build(env: Environment) -> Service:
    """Build the service; nothing is opened before it starts."""
    settings = PaymentSettings()
    service = Service("payment", env, READS)
    plans = Plans(Plan.model_validate(plan) for plan in settings.plans)
    subscriptions = Subscriptions(SubscriptionStore(), plans, clock=service.clock, new_id=new_id)
    service.schedule(workers.lapses(subscriptions, service.door))
    service.serve([*subscription_routes.handlers(subscriptions, service.door)])
    return service
