"""Wires the brokerage."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta

from services.broker import READS, consumers
from services.broker.domain.risk import Limits
from services.broker.ports import Account, Adapter
from services.broker.routes import accounts as account_routes
from services.broker.routes import orders as order_routes
from services.broker.routes import trading as trading_routes
from services.broker.service.accounts import Accounts
from services.broker.service.books import Books
from services.broker.service.calendar import Calendar
from services.broker.service.checking import Checking, Deployment
from services.broker.service.commands import Commands
from services.broker.service.orders import Orders
from services.broker.service.quotes import Hear, Quotes
from services.broker.service.reconcile import Reconcile
from services.broker.service.sendings import Sendings
from services.broker.service.venues import Secrets, Venues
from services.broker.settings import BrokerSettings
from services.broker.store.accounts import AccountStore
from services.broker.store.books import BookStore
from services.broker.store.orders import OrderStore
from services.broker.workers.by_the_clock import sweeps
from services.broker.workers.monitor import Monitors
from shared.clock import new_id
from shared.service import Environment, Service
from shared.sessions import Sessions
from shared.work import Worker
from shared.xnys import load_sessions


def build(env: Environment) -> Service:
    """Build the service; nothing is opened before it starts."""
    settings = BrokerSettings()
    service = Service("broker", env, READS)
    return assemble(service, env, settings, [], _none)


def assemble(
    service: Service,
    env: Environment,
    settings: BrokerSettings,
    adapters: Sequence[Adapter],
    secrets: Secrets,
    *,
    hear: Sequence[Hear] = (),
    load: Callable[[], Awaitable[Sessions]] = load_sessions,
) -> Service:
    """Wire the service over these venues; `hear` takes each quote, `load` returns the exchange's sessions."""
    door, clock = service.door, service.clock
    order_store, account_store, book_store = OrderStore(), AccountStore(), BookStore()
    venues = Venues(adapters, secrets)
    service.closes(venues)
    books = Books(book_store, order_store, clock=clock, new_id=new_id)
    orders = Orders(order_store, books, clock=clock, new_id=new_id)
    accounts = Accounts(account_store, orders, venues, trading=settings.trading, clock=clock, new_id=new_id)
    commands = Commands(orders, account_store, book_store, venues, clock=clock)
    checking = Checking(
        Deployment(settings.trading, _limits(settings), settings.plan),
        account_store,
        order_store,
        book_store,
        calendar=Calendar(load),
        clock=clock,
    )
    sendings = Sendings(orders, account_store, checking, venues, door=door, clock=clock)
    sending = Worker(sendings.work(settings.concurrency), door, clock, draw=env.random.random)
    orders.wake = sending.wake
    service.work(sending)
    reconcile = Reconcile(orders, books, account_store, book_store, door=door, clock=clock, new_id=new_id)
    service.work(
        Monitors(
            account_store,
            venues,
            reconcile,
            db=service.db,
            door=door,
            every_s=settings.reconcile_s,
            draw=env.random,
        )
    )
    service.schedule(sweeps(reconcile, settings.quiet_s))
    for consumer in consumers.tables(commands, Quotes(book_store, hear), accounts):
        service.consume(consumer)
    service.serve(
        [
            *trading_routes.handlers(trading_routes.Asking(accounts, order_store, door), clock=clock, new_id=new_id),
            *order_routes.handlers(accounts, order_store, door),
            *account_routes.handlers(accounts, account_store, book_store, door),
        ]
    )
    return service


def _limits(settings: BrokerSettings) -> Limits:
    return Limits(
        max_order_value=settings.max_order_value,
        max_position_value=settings.max_position_value,
        max_orders_a_minute=settings.max_orders_a_minute,
        collar=settings.collar,
        quote_age=timedelta(seconds=settings.quote_age_s),
        duplicate_window=timedelta(seconds=settings.duplicate_window_s),
    )


async def _none(account: Account) -> Mapping[str, str]:
    """Paper needs no credentials."""
    del account
    return {}
