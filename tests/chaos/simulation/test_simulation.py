"""The promise of the runtime under crashes, zombies, lost answers and rebalances. The long run: `make simulate`."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.chaos.simulation.database import Server
from tests.chaos.simulation.plan import CALM, HOLDING, Fact, Plan, Trouble, random_plan
from tests.chaos.simulation.run import Report, simulate
from tests.chaos.simulation.schema import simulating

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.environ.get("OPENBELL_KAFKA") == "embedded", reason="its Kafka is in memory: the run on Apache Kafka has it"
    ),
]

SEEDS = 40


@pytest.fixture(scope="module")
def server(postgres: str) -> Generator[Server]:
    with simulating(postgres) as made:
        yield made


def check(report: Report) -> None:
    assert not report.wrong, report.explain()


@pytest.mark.parametrize("plan", [CALM, HOLDING], ids=["calm", "holding"])
def test_a_crash_at_any_await_loses_doubles_and_reorders_nothing(server: Server, plan: Plan) -> None:
    """Between two requests a process changes only its memory: it is crashed after each change of the world."""
    whole = simulate(plan, server)
    check(whole)
    assert len(whole.touched) > 100
    for step in whole.touched:
        report = simulate(replace(plan, crash_at=step), server)
        check(report)
        assert report.steps == step, "it was not crashed"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_drawn_plan_keeps_the_promise(server: Server, seed: int) -> None:
    check(simulate(random_plan(seed), server))


def test_an_event_that_never_works_keeps_no_consumer_stopped(server: Server) -> None:
    """Two keys open the fuse. One of them will never work, the other works again: a probe must come to it."""
    check(simulate(Plan((Fact("a", "hopeless"), Fact("b", "transient", times=3)), fuse_keys=2), server))


def test_the_same_plan_is_the_same_run(server: Server) -> None:
    """Every statement, record and effect, at the same virtual time and step."""
    plan = replace(random_plan(11), crash_at=200)
    first, second = simulate(plan, server), simulate(Plan.from_json(plan.to_json()), server)
    assert list(first.trace) == list(second.trace)
    assert first.digest == second.digest
    assert simulate(replace(plan, seed=12), server).digest != first.digest


def test_a_failure_is_seen_again_in_another_process() -> None:
    """Where the order of a set would show, hashes give it away: Python draws them anew for each process."""
    plan = random_plan(17).to_json()
    told = [
        subprocess.run(
            (sys.executable, "-m", "tests.chaos.simulation", "--plan", plan),
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.splitlines()
        for seed in ("1", "2")
    ]
    assert len(told[0]) > 100
    assert told[0][:-1] == told[1][:-1], "the last line has the real time in it"


KEYS = st.sampled_from("abc")
KINDS = st.sampled_from(("plain", "plain", "transient", "permanent", "hopeless", "poison", "next_version", "foreign"))


@st.composite
def plans(draw: Any) -> Plan:
    facts: list[Fact] = []
    for _ in range(draw(st.integers(1, 10))):
        sound = [n for n, one in enumerate(facts) if one.kind in {"plain", "transient"}]
        kind = draw(KINDS)
        times = draw(st.integers(1, 3)) if kind == "transient" else 0
        fact = Fact(draw(KEYS), kind, times)
        if sound and draw(st.integers(0, 4)) == 0:
            needs = draw(st.sampled_from(sound))
            fact = draw(
                st.sampled_from((Fact(facts[needs].key, "again", 0, needs), Fact(fact.key, "not_yet", 0, needs)))
            )
        facts.append(fact)
    troubles = st.builds(
        Trouble,
        at_s=st.sampled_from((0.0, 0.005, 0.01, 0.02, 0.05, 0.3, 1.0)),
        what=st.sampled_from(("crash", "freeze", "stop", "start", "postgres", "kafka", "cut")),
        who=st.integers(0, 2),
        for_s=st.sampled_from((0.2, 3.0, 9.0)),
    )
    return Plan(
        facts=tuple(facts),
        seed=draw(st.integers(0, 10_000)),
        batch=draw(st.booleans()),
        hold=draw(st.booleans()),
        processes=draw(st.integers(1, 2)),
        slow=draw(st.sampled_from((0.0, 0.3))),
        lost=draw(st.sampled_from((0.0, 0.02))),
        unacknowledged=draw(st.sampled_from((0.0, 0.2))),
        troubles=tuple(draw(st.lists(troubles, max_size=3))),
    )


@settings(
    max_examples=40,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(plan=plans())
def test_any_sequence_of_facts_failures_and_rebalances_keeps_the_promise(server: Server, plan: Plan) -> None:
    check(simulate(plan, server))


def test_a_plan_survives_being_printed() -> None:
    for seed in range(50):
        plan = random_plan(seed)
        assert Plan.from_json(plan.to_json()) == plan
        json.loads(plan.to_json())
