"""Wires the gateway.

In one process, whoever starts the services says where the others are: `gateway.neighbours["detector"] = detector.app`.
A service that is no neighbour is looked for in OPENBELL_UPSTREAMS.
"""

from datetime import datetime, timedelta
from typing import Final

import httpx
from litestar import Litestar
from litestar.types import ASGIApp, ControllerRouterHandler
from purgatory import AsyncCircuitBreakerFactory

from services.api import READS, consumers, store
from services.api.adapters.tokens import IssuedTokens, PublishedKeys
from services.api.adapters.upstreams import InMemory, OverHttp, not_failures
from services.api.forwarding import RULES, Forwarder
from services.api.gate import FAILURES, SIGNUP, USER, Gate
from services.api.limits import Limiter, Policy
from services.api.ports import Upstream
from services.api.principals import Principals
from services.api.realtime import Limits, Realtime
from services.api.routes import Doors, handlers
from services.api.service import AuditLog, By, Feed, Keys, Plans, Users, Watchlists
from services.api.settings import ApiSettings
from services.api.store import feed as feed_store
from services.api.tickets import Tickets
from shared.clock import NewId, new_id
from shared.external import breaker_moved
from shared.http import build_app
from shared.identity import Signer, identity_secret, safe_secret
from shared.schedule import Job, Scheduler
from shared.service import Environment, Service
from shared.settings import SharedSettings

BUCKETS_KEPT: Final = timedelta(days=1)


class Gateway(Service):
    """The service `api`: its gate takes people's credentials, and it knows the way to its neighbours."""

    def __init__(self, env: Environment) -> None:
        super().__init__("api", env, READS)
        self.neighbours: dict[str, ASGIApp] = {}
        self.gate: Gate | None = None
        self.realtime: Realtime
        self.http: httpx.AsyncClient | None = None
        self._gateway_app: Litestar | None = None
        self._operations_app: Litestar | None = None

    @property
    def app(self) -> Litestar:
        """The app behind the gate."""
        if self._gateway_app is None:
            if self.gate is None:
                raise RuntimeError("the gateway has no gate yet")
            self._gateway_app = build_app(self, gate=self.gate, operations=False)
        return self._gateway_app

    @property
    def operations_app(self) -> Litestar:
        """The gateway's own operations, as every service has them; they take signed identities only."""
        if self._operations_app is None:
            self._operations_app = build_app(_OperationsOnly(self))
        return self._operations_app

    async def stop(self) -> None:
        """Stop what runs; close the connections to other services last."""
        await super().stop()
        if self.http is not None:
            await self.http.aclose()


class _OperationsOnly:
    """A service as it is served without routes of its own."""

    def __init__(self, service: Service) -> None:
        self.name = service.name
        self.settings = service.settings
        self.clock = service.clock
        self.door = service.door
        self.operations = service.operations
        self.handlers: list[ControllerRouterHandler] = []
        self._service = service

    @property
    def scheduler(self) -> Scheduler:
        return self._service.scheduler

    async def readiness(self) -> dict[str, tuple[bool, str]]:
        return await self._service.readiness()


def build(env: Environment, ids: NewId = new_id) -> Gateway:
    """Wire the gateway; nothing runs yet. Raises UnsafeSecret where a development secret is not safe."""
    settings = ApiSettings()
    gateway = Gateway(env)
    http = gateway.http = httpx.AsyncClient(
        timeout=httpx.Timeout(
            settings.upstream_read_s, connect=settings.upstream_connect_s, pool=settings.upstream_connect_s
        ),
        limits=httpx.Limits(max_connections=settings.upstream_connections, keepalive_expiry=30),
        follow_redirects=False,
        trust_env=False,
    )
    principals = Principals(gateway.db, env.clock, _tokens(settings, http, env), settings.principal_ttl_s)
    limiter = Limiter(gateway.db, env.clock)
    plans = Plans(gateway.db, env.clock)
    required = env.settings.environment == "production" if settings.require_plans is None else settings.require_plans
    tickets = Tickets(gateway.db, env.clock)
    gateway.gate = Gate(
        principals,
        limiter,
        _policies(settings),
        settings.trusted_proxies,
        plans=plans if required else None,
        tickets=tickets,
    )
    forwarder = Forwarder(
        _upstreams(gateway, settings, http), Signer(identity_secret(env.settings), env.clock), env.clock
    )
    keys = Keys(_key_secret(settings, env.settings), principals.forget)
    users, watchlists, audit = Users(keys), Watchlists(), AuditLog()
    feed = Feed(gateway.db, env.clock)
    gateway.realtime = Realtime(gateway.db, feed, env.clock, _limits(settings))
    gateway.work(gateway.realtime)

    for consumer in consumers.tables(audit, watchlists, plans, feed):
        gateway.consume(consumer)
    gateway.schedule(Job("rate-buckets-retention", "37 * * * *", lambda now: _forget_buckets(gateway, now)))
    kept = timedelta(hours=settings.realtime_keep_h)
    gateway.schedule(
        Job("feed-retention", "47 * * * *", lambda now: feed_store.forget(gateway.door.transaction, now - kept, now))
    )
    gateway.serve(
        handlers(
            Doors(
                users=users,
                keys=keys,
                watchlists=watchlists,
                audit=audit,
                principals=principals,
                gate=gateway.gate,
                forwarder=forwarder,
                realtime=gateway.realtime,
                tickets=tickets,
                door=gateway.door,
                clock=env.clock,
                new_id=ids,
            )
        )
    )
    return gateway


def _tokens(settings: ApiSettings, http: httpx.AsyncClient, env: Environment) -> IssuedTokens | None:
    if not settings.jwt_issuer or not settings.jwt_audience:
        return None
    return IssuedTokens(
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        secrets=[one.get_secret_value() for one in (settings.jwt_secret, settings.jwt_secret_before) if one],
        published=PublishedKeys(http, settings.jwks_url, env.clock) if settings.jwks_url else None,
        clock=env.clock,
    )


def _policies(settings: ApiSettings) -> dict[str, Policy]:
    return {
        USER: Policy(USER, settings.user_quota, settings.user_window_s),
        SIGNUP: Policy(SIGNUP, settings.signup_quota, settings.signup_window_s),
        FAILURES: Policy(FAILURES, settings.failure_quota, settings.failure_window_s),
    }


def _limits(settings: ApiSettings) -> Limits:
    return Limits(
        sockets=settings.realtime_sockets,
        of_a_user=settings.realtime_sockets_per_user,
        send_s=settings.realtime_send_s,
        check_s=settings.realtime_check_s,
    )


def _upstreams(gateway: Gateway, settings: ApiSettings, http: httpx.AsyncClient) -> dict[str, Upstream]:
    breakers = AsyncCircuitBreakerFactory(
        default_threshold=settings.breaker_threshold, default_ttl=settings.breaker_open_s, exclude=not_failures()
    )
    breakers.add_listener(breaker_moved)
    elsewhere = gateway.settings.upstreams
    names = sorted({rule.service for rule in RULES} | elsewhere.keys())
    upstreams: dict[str, Upstream] = {
        name: OverHttp(name, elsewhere[name], http, breakers)
        if name in elsewhere
        else InMemory(lambda name=name: gateway.neighbours.get(name), settings.upstream_read_s)
        for name in names
    }
    upstreams["api"] = InMemory(lambda: gateway.operations_app, settings.upstream_read_s)
    return upstreams


async def create_admin(service: Service, email: str) -> str:
    """Add a user with role admin; return their API key. Raises Conflict when the address is taken."""
    keys = Keys(_key_secret(ApiSettings(), service.settings), forget=lambda _: None)
    by = By("system", service.clock(), new_id)
    done = await service.door.run(lambda tx: Users(keys).sign_up(tx, by, email, role="admin"))
    return keys.show(done.key_id)


def _key_secret(settings: ApiSettings, shared: SharedSettings) -> str:
    return safe_secret("OPENBELL_API_KEY_SECRET", settings.key_secret.get_secret_value(), shared)


async def _forget_buckets(gateway: Gateway, now: datetime) -> None:
    await store.forget_buckets(gateway.door.transaction, now - BUCKETS_KEPT)
