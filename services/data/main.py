"""Wires the data service. The sources are chosen when the pollers start, not at import or build."""

import asyncio

from services.data import READS, consumers, routes
from services.data.adapters.alpaca_pairs import AlpacaPairs
from services.data.adapters.cboe import CboeSource
from services.data.adapters.replay import ReplaySource
from services.data.adapters.simulated_pairs import SimulatedPairs
from services.data.adapters.simulator import SimulatorSource, load_closes
from services.data.domain.pairs import parse_pair
from services.data.domain.symbols import parse_symbol
from services.data.ports import ChainSource, PairSource
from services.data.service import DataService
from services.data.settings import DataSettings
from services.data.store import SnapshotStore
from services.data.workers.chains import Poller
from services.data.workers.pairs import PairPoller
from shared.clock import Clock
from shared.errors import Invalid
from shared.service import Environment, Service
from shared.sessions import Sessions
from shared.xnys import load_sessions

REACHABLE_WITHIN_S = 2.0


def build(env: Environment) -> Service:
    """Wire. Raises Invalid for a configured symbol or pair outside the grammar."""
    settings = DataSettings()
    service = Service("data", env, READS)
    data = DataService(SnapshotStore(), service.clock)
    chosen = asyncio.Event()

    async def open_source() -> ChainSource:
        production = env.settings.environment == "production"
        source = await choose_source(settings, service.clock, await load_sessions(), production=production)
        settings.source = source.name  # whatever happens later, real and simulated chains never alternate
        chosen.set()
        return source

    async def open_pairs() -> PairSource | None:
        await chosen.wait()
        return choose_pairs(settings, service.clock)

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
    if settings.pairs:
        pairs = tuple(parse_pair(pair) for pair in settings.pairs)
        service.work(
            PairPoller(open_source=open_pairs, service=data, door=service.door, clock=service.clock, pairs=pairs)
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


def choose_pairs(settings: DataSettings, clock: Clock) -> PairSource | None:
    """Open the source of quotes of crypto pairs, once that of chains was chosen; None where there is none."""
    chains = {"cboe": "alpaca", "simulator": "simulator"}
    wanted = chains.get(settings.source) if settings.pairs_source == "auto" else settings.pairs_source
    if wanted == "alpaca":
        return AlpacaPairs(base_url=settings.alpaca_base_url, clock=clock, every_s=settings.pairs_every_s)
    if wanted == "simulator":
        return SimulatedPairs(clock=clock, seed=settings.simulator_seed, every_s=settings.pairs_every_s)
    return None
