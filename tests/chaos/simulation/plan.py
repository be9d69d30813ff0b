"""What happens in a run: which facts are told, how each behaves, how rough it is, and what is done to the processes.

A plan is plain data, so that a failure prints it and a command runs it again.
"""

import json
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, Final, Literal

Kind = Literal[
    "plain",  # works
    "transient",  # fails `times` times
    "permanent",  # is refused
    "hopeless",  # fails whenever it is tried
    "not_yet",  # works once the fact number `needs` has
    "poison",  # bytes that are no event
    "next_version",  # of a version that the code does not know
    "foreign",  # of a type that the consumer does not name
    "again",  # the fact number `needs` once more, with its id
]
Upset = Literal["crash", "freeze", "stop", "start", "postgres", "kafka", "cut"]
OnUnknown = Literal["resend", "look_up", "leave"]


@dataclass(frozen=True)
class Fact:
    """One record of the log."""

    key: str | None
    kind: Kind = "plain"
    times: int = 0
    needs: int = 0


@dataclass(frozen=True)
class Trouble:
    """Something done to the process `who` (counted from 0), or to all, `at_s` after the start, for `for_s`."""

    at_s: float
    what: Upset
    who: int = 0
    for_s: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A whole run. `crash_at` kills the first process before that step of its."""

    facts: tuple[Fact, ...]
    seed: int = 0
    batch: bool = False
    hold: bool = False
    fuse_keys: int = 50
    partitions: int = 2
    processes: int = 1
    gap_s: float = 0.002
    slow: float = 0.0
    lost: float = 0.0
    unacknowledged: float = 0.0
    sink_fails: float = 0.0
    on_unknown: OnUnknown = "resend"
    deploy_at_s: float | None = None  # from then on, new processes know the next version
    operator: bool = False  # at rest, a person retries or discards what died or is held
    troubles: tuple[Trouble, ...] = ()
    crash_at: int | None = None

    def to_json(self) -> str:
        """Return what `from_json` reads; what is as always is left out."""
        plain = {name: value for name, value in asdict(self).items() if value != _USUAL.get(name)}
        for name, usual in (("facts", asdict(Fact(None))), ("troubles", asdict(Trouble(-1, "crash")))):
            if name in plain:
                plain[name] = [{k: v for k, v in one.items() if v != usual[k]} for one in plain[name]]
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan that a failure printed."""
        fields: dict[str, Any] = json.loads(text)
        fields["facts"] = tuple(Fact(**({"key": None} | one)) for one in fields["facts"])
        fields["troubles"] = tuple(Trouble(**({"what": "crash"} | one)) for one in fields.get("troubles", ()))
        return cls(**fields)


_USUAL: Final[dict[str, Any]] = asdict(Plan(()))

CALM: Final = Plan(
    facts=(
        Fact("a"),
        Fact("b", "transient", times=1),
        Fact("a", "again", needs=0),
        Fact("b"),
        Fact("c", "not_yet", needs=1),
        Fact("c", "permanent"),
        Fact("a"),
    ),
    batch=True,
)
"""A small plan whose every await is crashed at: a batch handler, a retry, a wait, a death, a doubled id."""

HOLDING: Final = Plan(
    facts=(
        Fact("a"),
        Fact("b", "transient", times=2),
        Fact("b"),
        Fact("c", "permanent"),
        Fact("c"),
        Fact("a", "poison"),
        Fact(None),
    ),
    hold=True,
    on_unknown="leave",
    operator=True,
)
"""Another: a consumer that holds until a person decides, bytes that are no event, a record without a key."""


def random_plan(seed: int) -> Plan:
    """Draw a plan; the same seed gives the same one."""
    if seed % 4 == 3:
        return zombie_plan(seed)
    random = Random(seed)
    rough = random.random() < 0.6
    plan = Plan(
        facts=random_facts(random, random.randint(4, 24)),
        seed=seed,
        batch=random.random() < 0.5,
        hold=random.random() < 0.3,
        partitions=random.randint(1, 3),
        processes=random.choice((1, 1, 2, 2, 3)),
        gap_s=random.choice((0.0, 0.002, 0.05, 0.3)),
        slow=random.choice((0.0, 0.1, 0.4)) if rough else 0.0,
        lost=random.choice((0.0, 0.005, 0.02)) if rough else 0.0,
        unacknowledged=random.choice((0.0, 0.1)) if rough else 0.0,
        sink_fails=random.choice((0.0, 0.3)),
        on_unknown=random.choice(("resend", "look_up", "leave")),
        troubles=random_troubles(random, random.randint(0, 5)),
        operator=random.random() < 0.4,
        deploy_at_s=random.choice((0.1, 1.0)) if random.random() < 0.2 else None,
    )
    return with_low_fuse(plan) if random.random() < 0.25 else plan


def zombie_plan(seed: int) -> Plan:
    """Two processes over the same two keys, each of them taken for dead and back again while the other works."""
    random = Random(seed)
    kinds: tuple[Kind, ...] = ("plain", "transient", "permanent", "transient")
    return Plan(
        facts=tuple(Fact(random.choice("ab"), random.choice(kinds), random.randint(1, 2)) for _ in range(16)),
        seed=seed,
        batch=random.random() < 0.5,
        partitions=1,
        processes=2,
        gap_s=0.1,
        slow=0.3,
        troubles=tuple(
            Trouble(round(random.uniform(0, 0.8), 4), "freeze", random.randrange(2), random.choice((2.5, 3.0, 4.0)))
            for _ in range(4)
        ),
    )


def with_low_fuse(plan: Plan) -> Plan:
    """Let failures over two keys stop the consumer, of facts that work when they are tried again.

    A stopped consumer whose next head always fails stands still until a person comes: that is no rest.
    """
    kinds: dict[str, Kind] = {"next_version": "permanent", "not_yet": "plain"}
    facts = [replace(one, kind=kinds.get(one.kind, one.kind)) for one in plan.facts]
    facts = [replace(one, kind="transient", times=3) if one.kind == "hopeless" else one for one in facts]
    return replace(plan, facts=tuple(facts), fuse_keys=2, hold=False, deploy_at_s=None)


def random_facts(random: Random, count: int) -> tuple[Fact, ...]:
    """Draw facts over a few keys, most of them plain."""
    keys = random.sample("abcdefgh", random.randint(1, 5))
    rare: tuple[Kind, ...] = ("permanent", "hopeless", "not_yet", "poison", "next_version", "foreign", "again")
    usual: list[Kind] = ["plain", "plain", "transient"]
    kinds = (*usual * 4, *rare)
    facts: list[Fact] = []
    for _ in range(count):
        kind = random.choice(kinds)
        sound = [n for n, one in enumerate(facts) if one.kind in {"plain", "transient"}]
        known = [n for n, one in enumerate(facts) if one.kind in {"plain", "transient", "permanent", "hopeless"}]
        if not {"not_yet": sound, "again": known}.get(kind, keys):
            kind = "plain"
        key = None if random.random() < 0.05 else random.choice(keys)
        needs = random.choice(sound) if kind == "not_yet" else random.choice(known) if kind == "again" else 0
        if kind == "again":
            key = facts[needs].key
        facts.append(Fact(key, kind, random.randint(1, 3) if kind == "transient" else 0, needs))
    return tuple(facts)


def random_troubles(random: Random, count: int) -> tuple[Trouble, ...]:
    """Draw what is done to the processes."""
    whats: tuple[Upset, ...] = (
        "crash",
        "crash",
        "crash",
        "freeze",
        "freeze",
        "stop",
        "start",
        "postgres",
        "kafka",
        "cut",
    )
    return tuple(
        Trouble(
            round(random.choice((0.3, 1.0, 3.0)) * random.random(), 4),
            random.choice(whats),
            random.randrange(3),
            random.choice((0.2, 1.0, 3.0, 9.0)),
        )
        for _ in range(count)
    )
