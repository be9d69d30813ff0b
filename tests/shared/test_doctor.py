"""The doctor sees what services need, says what is wrong and how to mend it, and changes nothing."""

import json
import os

import pytest
from pydantic import SecretStr

from shared import doctor, migrate
from shared.contracts.topics import TOPICS
from shared.doctor import Finding, examine
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.schema import SERVICES, head
from shared.settings import SharedSettings
from tests.conftest import eventually

NOWHERE = "127.0.0.1:1"


def without_kafka(database_url: str, **more: object) -> SharedSettings:
    return SharedSettings.model_validate({"database_url": database_url, "kafka_bootstrap": NOWHERE, **more})


def named(found: list[Finding], name: str) -> Finding:
    (one,) = [one for one in found if one.name == name]
    return one


async def test_a_database_at_its_head_is_well_and_a_kafka_that_is_away_is_told(database_url: str) -> None:
    found = await examine(without_kafka(database_url))
    assert {one.name: one.state for one in found if one.name.startswith("schema ")} == {
        f"schema {service}": "ok" for service in SERVICES
    }
    assert (named(found, "postgres").state, named(found, "clocks").state) == ("ok", "ok")
    kafka = named(found, "kafka")
    assert (kafka.state, NOWHERE in kafka.said, "OPENBELL_KAFKA_BOOTSTRAP" in kafka.mend) == ("broken", True, True)


async def test_a_schema_that_is_behind_is_broken_and_one_that_is_ahead_a_warning(database_url: str) -> None:
    await migrate.downgrade(database_url, "data")
    connection = await doctor.Database(database_url, schema="detector").connect()
    await connection.execute("update alembic_version set version_num = '9999'")
    await connection.execute("drop table payment.alembic_version")
    await connection.close()
    found = await examine(without_kafka(database_url))
    behind, ahead, none = (named(found, f"schema {service}") for service in ("data", "detector", "payment"))
    assert (behind.state, head("data") in behind.said, "make migrate" in behind.mend) == ("broken", True, True)
    assert (ahead.state, ahead.said) == ("warning", f"at 9999, this code knows {head('detector')}")
    assert (none.state, none.said) == ("broken", "there is none")


async def test_a_database_that_is_away_is_told_once(database_url: str) -> None:
    away = await examine(without_kafka("postgresql://127.0.0.1:1/openbell"))
    assert [(one.state, one.mend) for one in away if one.name == "postgres"] == [
        ("broken", "start it, or set OPENBELL_DATABASE_URL to where it is")
    ]
    assert not [one for one in away if one.name.startswith("schema")]
    base = database_url.rpartition("/")[0]
    unknown = named(await examine(without_kafka(f"{base}/nothing_here")), "postgres")
    assert (unknown.state, "nothing_here" in unknown.mend) == ("broken", True)


async def test_a_secret_that_anybody_knows_is_broken_in_production(database_url: str) -> None:
    settings = without_kafka(database_url, environment="production")
    assert named(await examine(settings), "identity secret").state == "broken"
    own = settings.model_copy(update={"identity_secret": SecretStr("x7" * 20)})
    found = await examine(own)
    assert named(found, "identity secret").state == "ok"
    assert not [one for one in found if "x7x7" in one.said + one.mend]


async def test_what_lies_under_a_key_that_is_not_here_is_broken(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = without_kafka(database_url)
    assert {named(await examine(settings), f"keys {one}").state for one in ("alerts", "broker")} == {"ok"}
    connection = await doctor.Database(database_url, schema="alerts").connect()
    await connection.execute("update sealing set key_id = 'gone', wrapped = '', body = ''")
    await connection.close()
    for keys in (None, f"here:{'A' * 43}="):
        if keys is not None:
            monkeypatch.setenv("OPENBELL_ALERTS_TARGET_KEYS", keys)
        lost = named(await examine(settings), "keys alerts")
        assert (lost.state, lost.said) == (
            "broken",
            "1 lie under keys that are not in OPENBELL_ALERTS_TARGET_KEYS: gone",
        )
        assert "credentials.md" in lost.mend
    monkeypatch.setenv("OPENBELL_ALERTS_TARGET_KEYS", f"here:{'A' * 43}=,gone:{'B' * 42}A=")
    assert named(await examine(settings), "keys alerts").state == "ok"
    monkeypatch.setenv("OPENBELL_ALERTS_TARGET_KEYS", "s3cret-without-an-id")
    wrong = named(await examine(settings), "keys alerts")
    assert (wrong.state, "s3cret" in wrong.said) == ("broken", False)
    monkeypatch.delenv("OPENBELL_ALERTS_TARGET_KEYS")
    production = without_kafka(database_url, environment="production", identity_secret="x7" * 20)
    found = await examine(production)
    assert not [one for one in found if one.name.startswith("keys ")], "this process does not read those keys"


async def test_a_gateway_that_does_not_answer_is_told(database_url: str) -> None:
    found = await examine(
        without_kafka(database_url, upstreams={"detector": f"http://{NOWHERE}"}), "http://127.0.0.1:2"
    )
    assert [named(found, name).state for name in ("gateway", "detector")] == ["broken", "broken"]


def test_missing_and_narrow_topics_are_told() -> None:
    wide = next(topic for topic in TOPICS if topic.partitions > 1)
    missing = next(topic for topic in TOPICS if topic.name != wide.name)
    there = {topic.name: topic.partitions for topic in TOPICS} | {wide.name: 1, "elsewhere": 3}
    del there[missing.name]
    assert {one.state: one.said for one in doctor.topics(there)} == {
        "broken": f"missing: {missing.name}",
        "warning": f"fewer partitions than meant: {wide.name}",
    }


async def test_a_kafka_with_all_topics_has_nothing_broken(database_url: str, address: KafkaAddress) -> None:
    await ensure_topics(address, TOPICS)
    settings = without_kafka(database_url, kafka_bootstrap=address.bootstrap)

    async def well() -> bool:
        return all(one.state != "broken" for one in await examine(settings) if one.name in {"kafka", "topics"})

    await eventually(well)


def test_the_command_tells_programs_and_people_and_has_an_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBELL_DATABASE_URL", "postgresql://127.0.0.1:1/openbell")
    monkeypatch.setenv("OPENBELL_KAFKA_BOOTSTRAP", NOWHERE)
    assert doctor.main(["--json"]) == 1
    states = {one["name"]: one["state"] for one in json.loads(capsys.readouterr().out)}
    assert (states["python"], states["postgres"], states["kafka"]) == ("ok", "broken", "broken")
    assert doctor.main([]) == 1
    assert "mend: start it, or set OPENBELL_DATABASE_URL" in capsys.readouterr().out
    monkeypatch.setenv("OPENBELL_DATABASE_POOL_SIZE", "0")
    assert doctor.main([]) == 1
    assert "OPENBELL_DATABASE_POOL_SIZE" in capsys.readouterr().out
    assert os.environ["OPENBELL_DATABASE_POOL_SIZE"] == "0"
