"""The ledger under chaos, for a minute: real processes, Apache Kafka, Postgres; everything is killed."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local import kafka as local_kafka
from deploy.local import processes
from deploy.local.kafka import RunningKafka
from tests.chaos.ledger.faults import KILLS, OTHERS, plan

ROOT = Path(__file__).parents[2]
EVENTS, KILLED, CHAOS_S, SETTLE_S = 3000, 10, 45, 120


def test_a_plan_is_the_same_for_a_seed_and_kills_as_often_as_asked():
    first = plan(7, kills=100, seconds=480)
    assert first == plan(7, kills=100, seconds=480) != plan(8, kills=100, seconds=480)
    assert sum(KILLS[one.kind][1] for one in first if one.kind in KILLS) >= 100
    assert {one.kind for one in first} == {*KILLS, *OTHERS}
    assert all(0 <= one.at_s <= 480 for one in first)


@pytest.mark.apache
@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(CHAOS_S + SETTLE_S + 120)
def test_a_ledger_loses_doubles_and_reorders_nothing_while_everything_is_killed(kafka: RunningKafka, tmp_path: Path):
    if kafka.kind != "apache" or not _has_jars():
        pytest.skip("needs Apache Kafka as a process of its own")
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(1_000_000))
    options = {"seed": seed, "events": EVENTS, "kills": KILLED, "seconds": CHAOS_S, "settle": SETTLE_S}
    command = [sys.executable, "-m", "tests.chaos.ledger", "--out", str(tmp_path / "chaos-ledger.json")]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    # A process of its own, for servers die with the thread that started them; it dies with this one.
    folder = tmp_path / "driver"
    driver = processes.start(
        "the chaos driver", command, folder=folder, lock=processes.claim(folder), env={"PYTHONPATH": str(ROOT)}
    )
    try:
        driver.process.wait(CHAOS_S + SETTLE_S + 90)
    except subprocess.TimeoutExpired:
        pytest.fail(f"seed {seed}: the driver hangs\n{driver.log.read_text()[-4000:]}")
    finally:
        code = driver.process.poll()
        driver.stop(grace_s=30)
    assert code == 0, f"repeat with CHAOS_SEED={seed}\n{driver.log.read_text()[-6000:]}"


def _has_jars() -> bool:
    try:
        return local_kafka.jars().is_dir()
    except local_kafka.Unavailable:
        return False
