"""What changed since the last snapshot of a symbol, and what must be kept to say so next time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

import numpy as np
import pyarrow as pa

from services.detector.domain.rule import Chains, Found, Ints, Names, arrow
from shared.contracts.data import ChainHeader


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is kept of a symbol's last snapshot: the session's volume of every contract that had any.

    Smaller volumes are kept too, though the rule ignores them: the change of a contract that crosses the
    threshold now is exact only if its volume below the threshold was known.
    """

    session: date
    as_of: datetime
    contracts: Names
    volume: Ints


def compare(chains: Chains, found: Found, known: Mapping[str, Snapshot]) -> tuple[Ints, dict[str, Snapshot]]:
    """Return the volume change of each contract found, and the snapshots to keep from now on.

    A symbol's chains are compared in the order they stand; each with the newest snapshot before it, from the
    same session. Without one the whole volume is new. A late chain is compared with the newer one it missed,
    so it shows what that did not have, and does not replace it. A fall (a correction) counts as 0.
    """
    change = found.volume.astype(np.int64)
    latest = dict(known)
    kept: dict[str, Snapshot] = {}
    for turn in _turns(chains.headers):
        headers = {number: chains.headers[number] for number in turn}
        olds = {number: old for number, header in headers.items() if (old := latest.get(header.symbol))}
        same = {number: old for number, old in olds.items() if old.session == headers[number].session}
        here = np.isin(found.chain, list(same))
        if here.any():
            change[here] -= _volumes_in(list(same.values()), found.contracts.filter(pa.array(here)))
        for number, header in headers.items():
            old = olds.get(number)
            if old is None or (header.session, header.as_of) > (old.session, old.as_of):
                kept[header.symbol] = Snapshot(header.session, header.as_of, *found.traded.of_chain(number))
        latest |= kept
    return np.maximum(change, 0), kept


def _turns(headers: Sequence[ChainHeader]) -> list[list[int]]:
    """Split the chains so that each turn has a symbol once: the usual batch is one turn."""
    turns: list[list[int]] = []
    seen: dict[str, int] = {}
    for number, header in enumerate(headers):
        turn = seen.get(header.symbol, 0)
        seen[header.symbol] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(number)
    return turns


def _volumes_in(snapshots: Sequence[Snapshot], contracts: Names) -> Ints:
    """Return the volume that `snapshots` know of each of `contracts`; 0 where they know none."""
    names = pa.concat_arrays([snapshot.contracts for snapshot in snapshots])
    volumes = np.concatenate([snapshot.volume for snapshot in snapshots])
    place = arrow.index_in(names, value_set=contracts)
    hit = place.is_valid().to_numpy(zero_copy_only=False)
    found = np.zeros(len(contracts), dtype=np.int64)
    found[place.drop_null().to_numpy()] = volumes[hit]
    return found
