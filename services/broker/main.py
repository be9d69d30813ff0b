"""Wires the brokerage."""

import os
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from services.broker import READS, consumers
from services.broker.adapters.alpaca import Alpaca
from services.broker.adapters.ccxt_venue import Ccxt
from services.broker.adapters.oauth_tokens import HttpTokens
from services.broker.adapters.paper.adapter import PaperAdapter
from services.broker.adapters.tastytrade import Tastytrade
from services.broker.domain.matching import Model
from services.broker.domain.oauth import OAuthVenue
from services.broker.domain.risk import Limits
from services.broker.domain.tickets import Rules
from services.broker.ports import Account, Adapter
from services.broker.routes import accounts as account_routes
from services.broker.routes import callbacks as callback_routes
from services.broker.routes import credentials as credential_routes
from services.broker.routes import oauth as oauth_routes
from services.broker.routes import orders as order_routes
from services.broker.routes import trading as trading_routes
from services.broker.service.accounts import Accounts
from services.broker.service.books import Books
from services.broker.service.calendar import Calendar
from services.broker.service.callbacks import Callbacks
from services.broker.service.chains import Chains
from services.broker.service.checking import Checking, Deployment
from services.broker.service.commands import Commands
from services.broker.service.credentials import Credentials
from services.broker.service.exits import Exits
from services.broker.service.oauth import OAuth
from services.broker.service.orders import Orders
from services.broker.service.quotes import Hear, Quotes
from services.broker.service.reconcile import Reconcile
from services.broker.service.refresh import Refresher
from services.broker.service.sendings import Sendings
from services.broker.service.vault import Vault
from services.broker.service.venues import NoSuchVenue, Secrets, Venues, Version, the_same
from services.broker.settings import BrokerSettings
from services.broker.store.accounts import AccountStore
from services.broker.store.books import BookStore
from services.broker.store.callbacks import CallbackStore
from services.broker.store.chains import ChainStore
from services.broker.store.credentials import CredentialStore
from services.broker.store.exits import ExitStore
from services.broker.store.oauth import OAuthStore
from services.broker.store.orders import OrderStore
from services.broker.workers.by_the_clock import retention, sweeps
from services.broker.workers.exits import Protecting
from services.broker.workers.monitor import Monitors
from services.broker.workers.paper import Ticking, expiries, hears
from shared.clock import new_id
from shared.db import Tx
from shared.envelope import Envelope, keys_of
from shared.schedule import Job
from shared.service import Environment, Service
from shared.work import Worker
from shared.xnys import load_sessions


def build(env: Environment) -> Service:
    """Build the service; nothing is opened before it starts.

    Raises UnsafeSecret in production for development's keys.
    """
    settings = BrokerSettings()
    service = Service("broker", env, READS)
    calendar = Calendar(load_sessions)
    model = Model(
        slippage_bps=settings.paper_slippage_bps,
        latency=timedelta(milliseconds=settings.paper_latency_ms),
        stale_after=timedelta(seconds=settings.quote_age_s),
    )
    paper = PaperAdapter(service.db, service.clock, Rules(calendar.hours, model, seed=env.random.getrandbits(32)))
    service.closes(paper)
    service.work(Ticking(paper, calendar))
    service.schedule(expiries(paper, calendar, BookStore(), service.door))
    adapters: list[Adapter] = [
        paper,
        Alpaca(clock=service.clock),
        Tastytrade(service.clock),
        *(Ccxt(exchange) for exchange in settings.exchanges or ()),
    ]
    secrets, version = _credentials(service, env, settings, adapters)
    _callbacks(service, settings)
    heard = [hears(paper, calendar)]
    return assemble(service, env, settings, adapters, secrets, calendar=calendar, version=version, hear=heard)


def _credentials(
    service: Service, env: Environment, settings: BrokerSettings, adapters: Sequence[Adapter]
) -> tuple[Secrets, Version]:
    """Wire the vault and OAuth; return what opens an account's credentials, and what tells that they are others."""
    clock, door = service.clock, service.door
    keys = keys_of("OPENBELL_BROKER_CREDENTIAL_KEYS", settings.credential_keys.get_secret_value(), env.settings)
    envelope, store = Envelope(keys, os.urandom), CredentialStore()
    vault = Vault(store, envelope, clock=clock, new_id=new_id)
    kinds = {one.name: one for one in adapters}

    def needed(venue: str) -> Collection[str]:
        if venue not in kinds:
            raise NoSuchVenue(f"there is no venue {venue[:40]!r}")
        return kinds[venue].secrets

    credentials = Credentials(vault, AccountStore(), needed, clock=clock, new_id=new_id)
    endpoint = HttpTokens()
    venues = {venue.name: venue for venue in (OAuthVenue(**about) for about in settings.oauth_venues)}
    oauth = OAuth(
        door,
        vault,
        credentials,
        endpoint,
        venues,
        store=OAuthStore(),
        envelope=envelope,
        clock=clock,
        random_bytes=os.urandom,
    )
    refresher = Refresher(door, vault, store, endpoint, venues, clock=clock, new_id=new_id)
    service.closes(refresher, oauth, endpoint)
    service.serve([*credential_routes.handlers(credentials, door), *oauth_routes.handlers(oauth)])

    async def secrets(account: Account) -> Mapping[str, str]:
        return await refresher.secrets(account) if needed(account.venue) else {}

    async def version(account: Account) -> UUID | None:
        if not needed(account.venue):
            return None
        async with door.read() as tx:
            return await vault.version(tx, account.id)

    return secrets, version


def _callbacks(service: Service, settings: BrokerSettings) -> None:
    """Wire callbacks: each only has the order that it names looked up."""
    orders = OrderStore()

    async def want_look_up(tx: Tx, venue: str, order_id: UUID | None, venue_order_id: str | None) -> bool:
        named = [] if order_id is None else [order_id]
        if venue_order_id is not None:
            named += await orders.by_venue_id(tx, venue, venue_order_id)
        known = [one for one in (await orders.lock_all(tx, named)).values() if one.order.venue == venue]
        for one in known:
            await orders.send(tx, new_id(), one.order.id, "look_up", service.clock())
        return bool(known)

    by_venue = {name: secret.get_secret_value().split(",") for name, secret in settings.callback_secrets.items()}
    callbacks = Callbacks(by_venue, CallbackStore(), want_look_up, service.door, service.clock)
    service.schedule(Job("callbacks-again", "* * * * *", callbacks.again))
    service.schedule(Job("callbacks-retention", "37 4 * * *", callbacks.forget))
    service.serve([*callback_routes.handlers(callbacks)])


def assemble(
    service: Service,
    env: Environment,
    settings: BrokerSettings,
    adapters: Sequence[Adapter],
    secrets: Secrets,
    *,
    calendar: Calendar,
    version: Version = the_same,
    hear: Sequence[Hear] = (),
) -> Service:
    """Wire the service over these venues; `hear` takes each quote."""
    door, clock = service.door, service.clock
    order_store, account_store, book_store = OrderStore(), AccountStore(), BookStore()
    venues = Venues(adapters, secrets, version)
    service.closes(venues)
    books = Books(book_store, order_store, clock=clock, new_id=new_id)
    orders = Orders(order_store, books, clock=clock, new_id=new_id)
    accounts = Accounts(account_store, orders, venues, trading=settings.trading, clock=clock, new_id=new_id)
    checking = Checking(
        Deployment(settings.trading, _limits(settings), settings.plan),
        calendar=calendar,
        clock=clock,
    )
    commands = Commands(orders, account_store, book_store, venues, checking, clock=clock)
    chains = Chains(ChainStore(), book_store, door=door, clock=clock, hear=hear)
    service.schedule(chains.forgets())
    exits = Exits(
        ExitStore(),
        orders,
        book_store,
        venues,
        door=door,
        clock=clock,
        quote_age=timedelta(seconds=settings.quote_age_s),
    )
    service.work(Protecting(exits))
    sendings = Sendings(
        orders, account_store, checking, venues, door=door, clock=clock, follow=chains.follow, exits=exits
    )
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
    service.schedule(retention(order_store, door))
    for consumer in consumers.tables(commands, Quotes(book_store, service.clock, hear), chains, accounts):
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
