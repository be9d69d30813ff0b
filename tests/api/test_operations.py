"""Operations through the gateway: who may, what is merged, what a repetition does, and what a bad request gets."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest

from services.api.main import Gateway
from services.data.main import build as build_data
from shared.service import Service
from tests.api.conftest import Person, client_of, problem, rows

AWAY = dict.fromkeys(("alerts", "broker", "detector", "payment"), "UPSTREAM_UNAVAILABLE")
NOBODY = UUID("01980000-0000-7000-8000-000000000000")  # the same in every process: ids name the tests
POSTS: list[tuple[str, Any]] = [
    ("/ops/failed-jobs/retry", {"consumer": "api.audit"}),
    ("/ops/failed-jobs/discard", {"consumer": "api.audit", "reason": "x"}),
    (f"/ops/failed-jobs/api/{NOBODY}/retry", None),
    (f"/ops/failed-jobs/api/{NOBODY}/edit", {"value": {}}),
    (f"/ops/failed-jobs/api/{NOBODY}/redirect", {"topic": "api.users"}),
    (f"/ops/failed-jobs/api/{NOBODY}/discard", {"reason": "x"}),
    ("/ops/replays", {"consumer": "api.audit"}),
    (f"/ops/runs/api/{NOBODY}/cancel", None),
    ("/ops/jobs/api/inbox-days/run", None),
]
GETS = [
    "/ops/failed-jobs",
    "/ops/failed-jobs/groups",
    "/ops/runs",
    f"/ops/runs/api/{NOBODY}",
    "/ops/topics",
    "/ops/lag",
]


@pytest.fixture
async def data(gateway: Gateway):
    """The data service, as a neighbour of the gateway's."""
    service: Service = build_data(gateway._env)
    gateway.neighbours["data"] = service.app
    yield service
    await service.stop()


async def dead(service: Service, offset: int = 0, code: str = "REFUSED") -> None:
    async with service.db.transaction() as tx:
        await tx.connection.execute(
            """insert into failed_jobs (consumer, topic, partition, record_offset, key, headers, status, job_type,
                                        error_code, fingerprint)
               values ($1 || '.things', 'x.y', 0, $2, 'k', '\\x90', 'dead', 'x.v1', $3, $1 || $3)""",
            service.name,
            offset,
            code,
        )


async def test_only_an_administrator_operates(client: httpx.AsyncClient, ada: Person):
    calls = [("GET", path, None) for path in GETS] + [("POST", path, body) for path, body in POSTS]
    for method, path, body in calls:
        stranger = await client.request(method, path, json=body)
        assert (stranger.status_code, problem(stranger)["code"]) == (401, "UNAUTHENTICATED"), path
        user = await client.request(method, path, json=body, headers=ada.headers)
        assert (user.status_code, problem(user)["code"]) == (403, "FORBIDDEN"), path


async def test_a_bulk_action_reaches_every_service_that_has_such_jobs(
    client: httpx.AsyncClient, gateway: Gateway, data: Service, admin: Person
):
    await dead(gateway)
    await dead(data)
    await dead(data, 1)
    await dead(data, 2, "OTHER")
    order = {"code": "REFUSED", "rate": 1}
    seen = await client.post("/ops/failed-jobs/retry", json=order | {"dry_run": True}, headers=admin.headers)
    assert seen.status_code == 202, seen.text
    counts = {one["service"]: (one["matched"], one["run"]) for one in seen.json()["services"]}
    assert counts == {"api": (1, None), "data": (2, None)}
    assert seen.json()["unavailable"] == AWAY
    done = await client.post("/ops/failed-jobs/retry", json=order, headers=admin.headers)
    started = {one["service"]: one["run"] for one in done.json()["services"]}
    assert (started["api"]["rows"], started["data"]["rows"]) == (1, 2)
    listed = (await client.get("/ops/runs", headers=admin.headers)).json()
    assert {run["id"] for run in listed["runs"]} == {run["id"] for run in started.values()}
    mine = {"consumer": "data.things", "reason": "known"}
    only = await client.post("/ops/failed-jobs/discard", json=mine, headers=admin.headers)
    assert [one["service"] for one in only.json()["services"]] == ["data"]
    assert only.json()["unavailable"] == {}


async def test_what_was_asked_twice_with_one_key_is_done_once_in_every_service(
    client: httpx.AsyncClient, gateway: Gateway, data: Service, admin: Person
):
    await dead(gateway)
    await dead(data)
    headers = admin.headers | {"idempotency-key": "once"}
    answers = [await client.post("/ops/failed-jobs/retry", json={"code": "REFUSED"}, headers=headers) for _ in "ab"]
    assert answers[0].json() == answers[1].json()
    assert all(one["run"] for one in answers[0].json()["services"])
    assert (await rows(gateway, "select count(*) as n from ops_runs"))[0]["n"] == 1
    other = await client.post("/ops/failed-jobs/retry", json={"code": "OTHER"}, headers=headers)
    assert (other.status_code, problem(other)["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_one_jobs_actions_and_job_runs_take_a_key_too(client: httpx.AsyncClient, gateway: Gateway, admin: Person):
    await dead(gateway)
    await dead(gateway, 1)
    await gateway.scheduler.turn()
    first, second = (row["id"] for row in await rows(gateway, "select id from failed_jobs order by id"))
    for path, body in (
        (f"/ops/failed-jobs/api/{first}/retry", None),
        (f"/ops/failed-jobs/api/{first}/discard", {"reason": "x"}),
        (f"/ops/failed-jobs/api/{second}/redirect", {"topic": "api.users"}),
        ("/ops/replays", {"consumer": "api.audit", "dry_run": True}),
        ("/ops/jobs/api/inbox-days/run", None),
    ):
        headers = admin.headers | {"idempotency-key": f"k{path}"}
        one, two = [await client.post(path, json=body, headers=headers) for _ in "ab"]
        assert one.is_success, one.text
        assert (one.content, two.headers["idempotent-replayed"]) == (two.content, "true")
    told = [
        json.loads(row["value"]) for row in await rows(gateway, "select value from outbox where topic = 'api.audit'")
    ]
    assert [one["action"] for one in told if one["actor"] != "system"] == [
        "retry.failed_job",
        "discard.failed_job",
        "redirect.failed_job",
        "run.job",
    ]
    assert len(await rows(gateway, "select 1 from outbox where topic = 'api.users' and key = 'k'")) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ops/failed-jobs/retry", {}),
        ("/ops/failed-jobs/retry", {"statuses": ["dead"]}),
        ("/ops/failed-jobs/retry", {"consumer": "api.audit", "statuses": ["resolved"]}),
        ("/ops/failed-jobs/retry", {"consumer": "api.audit", "statuses": []}),
        ("/ops/failed-jobs/retry", {"consumer": "api.audit", "rate": 0}),
        ("/ops/failed-jobs/retry", {"consumer": "api.audit", "cap": 0}),
        ("/ops/failed-jobs/retry", {"consumer": "api.audit", "dry_run": "no"}),
        ("/ops/failed-jobs/retry", {"consumer": "api.audit", "since": "2026-01-01T00:00:00"}),
        ("/ops/failed-jobs/retry", {"consumer": "api.audit", "surprise": 1}),
        ("/ops/failed-jobs/discard", {"consumer": "api.audit"}),
        ("/ops/failed-jobs/discard", {"consumer": "api.audit", "reason": " "}),
        ("/ops/replays", {"consumer": "api.nobody"}),
        ("/ops/replays", {"consumer": "api.audit", "topic": "data.chains"}),
        ("/ops/replays", {"consumer": "api.audit", "from_offset": -1}),
        (f"/ops/failed-jobs/api/{NOBODY}/edit", {"value": {}, "value_base64": ""}),
        (f"/ops/failed-jobs/api/{NOBODY}/edit", {"value_base64": "no base64"}),
    ],
)
async def test_a_bad_order_is_refused_and_nothing_begins(
    client: httpx.AsyncClient, gateway: Gateway, admin: Person, path: str, body: dict[str, Any]
):
    answer = await client.post(path, json=body, headers=admin.headers)
    assert (answer.status_code, problem(answer)["code"]) == (422, "VALIDATION_ERROR"), answer.text
    assert await rows(gateway, "select 1 from ops_runs") == []


async def test_a_consumer_of_nobody_is_not_found(client: httpx.AsyncClient, admin: Person):
    for path in ("/ops/failed-jobs/retry", "/ops/replays"):
        answer = await client.post(path, json={"consumer": "nobody.things"}, headers=admin.headers)
        assert (answer.status_code, problem(answer)["code"]) == (404, "NOT_FOUND")


async def test_one_replay_at_a_time_for_each_consumer(client: httpx.AsyncClient, admin: Person):
    started = await client.post("/ops/replays", json={"consumer": "api.audit", "rate": 5}, headers=admin.headers)
    assert (started.status_code, started.json()["status"]) == (202, "queued"), started.text
    second = await client.post("/ops/replays", json={"consumer": "api.audit"}, headers=admin.headers)
    assert (second.status_code, problem(second)["code"]) == (409, "CONFLICT")
    path = f"/ops/runs/api/{started.json()['id']}"
    assert (await client.post(f"{path}/cancel", headers=admin.headers)).json()["cancel"] is True
    assert (await client.get(path, headers=admin.headers)).json()["request"]["topic"] == "api.audit"


async def test_topics_and_lag_are_told_without_kafka_too(make_gateway: Callable[..., Gateway], admin: Person):
    gateway = make_gateway(kafka_bootstrap="127.0.0.1:1")
    async with client_of(gateway.app) as client:
        topics = (await client.get("/ops/topics", headers=admin.headers)).json()
        lag = (await client.get("/ops/lag", headers=admin.headers)).json()
    audit = next(one for one in topics["topics"] if one["topic"] == "api.audit")
    assert (audit["owner"], audit["key"], audit["partitions"], audit["compact"]) == ("api", "subject", 4, False)
    assert (audit["records"], audit["problem"]) == (None, "Kafka does not answer")
    assert {one["consumer"] for one in lag["lag"]} == {consumer.name for consumer in gateway.consumers}
    assert {one["problem"] for one in lag["lag"]} == {"Kafka does not answer"}
