"""Wires the data service. The source of chains is chosen when the poller starts, not at import or build."""

import asyncio

from services.data import READS, consumers, routes
from services.data.adapters.cboe import CboeSource
from services.data.adapters.replay import ReplaySource
from services.data.adapters.simulator import SimulatorSource, load_closes
from services.data.domain.symbols import parse_symbol
from services.data.ports import ChainSource
from services.data.service import DataService
from services.data.settings import DataSettings
from services.data.store import SnapshotStore
from services.data.workers import Poller
from shared.clock import Clock
from shared.errors import Invalid
from shared.service import Environment, Service
from shared.sessions import Sessions
from shared.xnys import load_sessions

REACHABLE_WITHIN_S = 2.0


def build(env: Environment) -> Service:
    """Wire. Raises Invalid for a configured symbol outside the grammar."""
    settings = DataSettings()
    service = Service("data", env, READS)
    data = DataService(SnapshotStore(), service.clock)

    async def open_source() -> ChainSource:
        production = env.settings.environment == "production"
        source = await choose_source(settings, service.clock, await load_sessions(), production=production)
        settings.source = source.name  # whatever happens later, real and simulated chains never alternate
        return source

    service.work(
        Poller(
            open_source=open_source,
            service=data,
            door=service.door,
            clock=service.clock,
            symbols=tuple(parse_symbol(symbol) for symbol in settings.symbols),
            max_watched=settings.max_watched,
            batch=settings.batch,
            attempts=settings.attempts,
            breaker_threshold=settings.breaker_threshold,
            breaker_s=settings.breaker_s,
        )
    )
    for consumer in consumers.tables(data):
        service.consume(consumer)
    service.serve(routes.handlers(data, service.door))
    return service


async def choose_source(
    settings: DataSettings, clock: Clock, sessions: Sessions, *, production: bool = False
) -> ChainSource:
    """Open the configured source; `auto` takes the first that can be had, and in production never the simulator.

    A network that comes back later is not noticed before a restart: real and simulated chains must not
    alternate.
    """
    wanted = settings.source
    if wanted == "auto" and settings.replay_dir is not None:
        wanted = "replay"
    if wanted in {"auto", "cboe"}:
        cboe = CboeSource(
            base_url=settings.cboe_base_url,
            sessions=sessions,
            clock=clock,
            rate_per_s=settings.cboe_rate_per_s,
            poll_every_s=settings.poll_every_s,
            timeout_s=settings.cboe_timeout_s,
        )
        if wanted == "cboe" or production or await cboe.reachable(REACHABLE_WITHIN_S):
            return cboe
        await cboe.aclose()
    if wanted == "replay":
        if settings.replay_dir is None:
            raise Invalid("OPENBELL_DATA_SOURCE=replay needs OPENBELL_DATA_REPLAY_DIR")
        return await asyncio.to_thread(  # it reads every recording
            ReplaySource, folder=settings.replay_dir, sessions=sessions, clock=clock, pace_s=settings.replay_pace_s
        )
    return SimulatorSource(
        closes=await asyncio.to_thread(load_closes),
        sessions=sessions,
        clock=clock,
        seed=settings.simulator_seed,
        unusual=settings.simulator_unusual,
        session_s=settings.simulator_session_s,
        tick_s=settings.simulator_tick_s,
        poll_every_s=settings.simulator_poll_every_s,
    )
