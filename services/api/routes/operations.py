"""Operations over all services, for administrators: failed jobs, runs, topics, lag, and jobs by the clock.

Each service has these routes for itself (shared.http.ops); here they are merged, and one thing is addressed as
`{service}/{id}`. What a service that does not answer would have added is missing, and `unavailable` names it. An
Idempotency-Key goes along to the service where the effect is.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody
from pydantic import AwareDatetime

from services.api.forwarding import Forwarder
from services.api.ports import Answer, Outgoing
from services.api.routes.common import HttpRequest
from services.api.routes.forward import response_of
from shared.errors import Transient
from shared.http import Caller, exchange_of
from shared.http.json import json_response
from shared.http.ops import PAGE, Limit, Statuses
from shared.http.orders import Discard, DiscardMany, EditJob, Redirect, RetryMany, StartReplay
from shared.idempotency import HEADER

JSON: Final = (b"content-type", b"application/json")
KEY: Final = HEADER.encode()
SILENT: Final = 300
"""From this status on an answer adds nothing to a merged one."""

OPS: Final[Mapping[str, Any]] = {"caller": Caller.ADMIN, "tags": ["operations"]}


def operation_routes(forwarder: Forwarder) -> list[HTTPRouteHandler]:
    """Return the routes."""
    merged = Merged(forwarder)
    return [*_failed_jobs(merged), *_acts(merged), *_runs(merged), *_jobs(merged)]


def _failed_jobs(merged: "Merged") -> list[HTTPRouteHandler]:
    @get("/ops/failed-jobs", **OPS)
    async def list_failed_jobs(  # noqa: PLR0917 - Litestar passes by name
        request: HttpRequest,
        status: Statuses = None,
        consumer: FromQuery[str | None] = None,
        fingerprint: FromQuery[str | None] = None,
        code: FromQuery[str | None] = None,
        since: FromQuery[AwareDatetime | None] = None,
        until: FromQuery[AwareDatetime | None] = None,
        limit: Limit = PAGE,
    ) -> Response[bytes]:
        """List failed jobs of all services, latest first."""
        query = {"status": status, "consumer": consumer, "fingerprint": fingerprint, "code": code, "limit": limit}
        query |= {name: time.isoformat() for name, time in (("since", since), ("until", until)) if time}
        return await merged.lists(request, "/ops/failed-jobs", "failed_jobs", query, latest_by="failed_at")

    @get("/ops/failed-jobs/groups", **OPS)
    async def group_failed_jobs(request: HttpRequest) -> Response[bytes]:
        """Group open failed jobs of all services by what went wrong, latest first."""
        return await merged.lists(request, "/ops/failed-jobs/groups", "groups", {}, latest_by="last_at")

    @get("/ops/failed-jobs/{service:str}", **OPS)
    async def list_service_failed_jobs(request: HttpRequest, service: FromPath[str]) -> Response[bytes]:
        """List the failed jobs of one service, by page."""
        return await merged.one(request, service, "/ops/failed-jobs")

    @get("/ops/failed-jobs/{service:str}/{job_id:uuid}", **OPS)
    async def show_failed_job(request: HttpRequest, service: FromPath[str], job_id: FromPath[UUID]) -> Response[bytes]:
        """Show one failed job with its headers, body and history."""
        return await merged.one(request, service, f"/ops/failed-jobs/{job_id}")

    @post("/ops/failed-jobs/retry", status_code=202, **OPS)
    async def retry_failed_jobs(request: HttpRequest, data: JSONBody[RetryMany]) -> Response[bytes]:
        """Run many failed jobs again, at a rate, or say with `dry_run` which ones that would be."""
        return await merged.each(request, "/ops/failed-jobs/retry", "services", data.consumer)

    @post("/ops/failed-jobs/discard", status_code=202, **OPS)
    async def discard_failed_jobs(request: HttpRequest, data: JSONBody[DiscardMany]) -> Response[bytes]:
        """Give many failed jobs up, with a reason, or say with `dry_run` which ones that would be."""
        return await merged.each(request, "/ops/failed-jobs/discard", "services", data.consumer)

    return [
        list_failed_jobs,
        group_failed_jobs,
        list_service_failed_jobs,
        show_failed_job,
        retry_failed_jobs,
        discard_failed_jobs,
    ]


def _acts(merged: "Merged") -> list[HTTPRouteHandler]:
    @post("/ops/failed-jobs/{service:str}/{job_id:uuid}/retry", status_code=202, **OPS)
    async def retry_failed_job(request: HttpRequest, service: FromPath[str], job_id: FromPath[UUID]) -> Response[bytes]:
        """Run a failed job again as soon as its key allows."""
        return await merged.one(request, service, f"/ops/failed-jobs/{job_id}/retry")

    @post("/ops/failed-jobs/{service:str}/{job_id:uuid}/edit", status_code=202, **OPS)
    async def edit_failed_job(
        request: HttpRequest, service: FromPath[str], job_id: FromPath[UUID], data: JSONBody[EditJob]
    ) -> Response[bytes]:
        """Put a mended event, with an id of its own, in a failed job's place and run it as soon as its key allows."""
        del data  # it has been checked; the service reads the same bytes
        return await merged.one(request, service, f"/ops/failed-jobs/{job_id}/edit")

    @post("/ops/failed-jobs/{service:str}/{job_id:uuid}/redirect", status_code=202, **OPS)
    async def redirect_failed_job(
        request: HttpRequest, service: FromPath[str], job_id: FromPath[UUID], data: JSONBody[Redirect]
    ) -> Response[bytes]:
        """Publish a failed job's record to a topic of its service or to a dead-letter topic of its consumers."""
        del data
        return await merged.one(request, service, f"/ops/failed-jobs/{job_id}/redirect")

    @post("/ops/failed-jobs/{service:str}/{job_id:uuid}/discard", status_code=200, **OPS)
    async def discard_failed_job(
        request: HttpRequest, service: FromPath[str], job_id: FromPath[UUID], data: JSONBody[Discard]
    ) -> Response[bytes]:
        """Give a failed job up for good, with a reason."""
        del data
        return await merged.one(request, service, f"/ops/failed-jobs/{job_id}/discard")

    return [retry_failed_job, edit_failed_job, redirect_failed_job, discard_failed_job]


def _runs(merged: "Merged") -> list[HTTPRouteHandler]:
    @post("/ops/replays", status_code=202, **OPS)
    async def start_replay(request: HttpRequest, data: JSONBody[StartReplay]) -> Response[bytes]:
        """Read a topic's range again into one consumer, in the background; one replay at a time for each."""
        return await merged.one(request, data.consumer.partition(".")[0], "/ops/replays")

    @get("/ops/runs", **OPS)
    async def list_operations(request: HttpRequest, limit: Limit = PAGE) -> Response[bytes]:
        """List bulk actions and replays of all services, newest first."""
        return await merged.lists(request, "/ops/runs", "runs", {"limit": limit}, latest_by="created_at")

    @get("/ops/runs/{service:str}/{run_id:uuid}", **OPS)
    async def show_operation(request: HttpRequest, service: FromPath[str], run_id: FromPath[UUID]) -> Response[bytes]:
        """Show how far a bulk action or replay is."""
        return await merged.one(request, service, f"/ops/runs/{run_id}")

    @post("/ops/runs/{service:str}/{run_id:uuid}/cancel", status_code=202, **OPS)
    async def cancel_operation(request: HttpRequest, service: FromPath[str], run_id: FromPath[UUID]) -> Response[bytes]:
        """Ask a bulk action or replay to stop; what it did stays."""
        return await merged.one(request, service, f"/ops/runs/{run_id}/cancel")

    @get("/ops/topics", **OPS)
    async def list_topics(request: HttpRequest) -> Response[bytes]:
        """List all topics with owner, key, shape and what each partition holds."""
        return await merged.lists(request, "/ops/topics", "topics", {})

    @get("/ops/lag", **OPS)
    async def list_lag(request: HttpRequest) -> Response[bytes]:
        """List how far each consumer's partitions are behind Kafka's end, in records and seconds."""
        return await merged.lists(request, "/ops/lag", "lag", {})

    return [start_replay, list_operations, show_operation, cancel_operation, list_topics, list_lag]


def _jobs(merged: "Merged") -> list[HTTPRouteHandler]:
    @get("/ops/jobs", **OPS)
    async def list_jobs(request: HttpRequest) -> Response[bytes]:
        """List the jobs that run by the clock, of all services."""
        return await merged.lists(request, "/ops/jobs", "jobs", {})

    @get("/ops/jobs/{service:str}/{job:str}/runs", **OPS)
    async def list_runs(request: HttpRequest, service: FromPath[str], job: FromPath[str]) -> Response[bytes]:
        """List a job's latest runs, newest first."""
        return await merged.one(request, service, f"/ops/jobs/{job}/runs")

    @post("/ops/jobs/{service:str}/{job:str}/run", status_code=202, **OPS)
    async def run_job(request: HttpRequest, service: FromPath[str], job: FromPath[str]) -> Response[bytes]:
        """Ask for a run now."""
        return await merged.one(request, service, f"/ops/jobs/{job}/run")

    return [list_jobs, list_runs, run_job]


class Merged:
    """Asks services on an administrator's behalf."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    async def one(self, request: HttpRequest, service: str, path: str) -> Response[bytes]:
        """Return one service's answer to the same query and body."""
        answer = await self._ask(request, service, path, request.scope["query_string"])
        return response_of(request, answer)

    async def lists(
        self, request: HttpRequest, path: str, name: str, query: Mapping[str, Any], latest_by: str | None = None
    ) -> Response[bytes]:
        """Return every service's list as one."""
        given = {key: value for key, value in query.items() if value is not None}
        encoded = urlencode(given, doseq=True).encode()
        answers = await self._ask_all(request, self._forwarder.services, path, encoded)
        rows: list[dict[str, Any]] = [row for one in _decoded(answers) for row in one[name]]
        if latest_by:
            rows.sort(key=lambda row: str(row[latest_by]), reverse=True)
        limit = query.get("limit")
        return json_response({name: rows[:limit] if limit else rows, "unavailable": _silent(answers)})

    async def each(self, request: HttpRequest, path: str, name: str, consumer: str | None) -> Response[bytes]:
        """Have every service do the same, or only the one of a consumer. What one refuses is refused."""
        services = self._forwarder.services if consumer is None else [consumer.partition(".")[0]]
        answers = await self._ask_all(request, services, path, b"")
        for answer in answers.values():
            if isinstance(answer, Answer) and 400 <= answer.status < 500:  # noqa: PLR2004 - the caller's fault
                return response_of(request, answer)
        return json_response({name: _decoded(answers), "unavailable": _silent(answers)}, status_code=202)

    async def _ask_all(
        self, request: HttpRequest, services: Iterable[str], path: str, query: bytes
    ) -> dict[str, Answer | Transient]:
        async def ask(service: str) -> tuple[str, Answer | Transient]:
            try:
                return service, await self._ask(request, service, path, query)
            except Transient as error:
                return service, error

        return dict(await asyncio.gather(*(ask(service) for service in services)))

    async def _ask(self, request: HttpRequest, service: str, path: str, query: bytes) -> Answer:
        keys = [(name, value) for name, value in request.scope["headers"] if name == KEY]
        body = await request.body() if request.method == "POST" else b""
        outgoing = Outgoing(request.method, path, query, [JSON, *keys], body)
        return await self._forwarder.send(
            service, outgoing, identity=request.scope["user"], request_id=exchange_of(request.scope).request_id
        )


def _decoded(answers: Mapping[str, Answer | Transient]) -> list[dict[str, Any]]:
    return [
        msgspec.json.decode(one.body) for one in answers.values() if isinstance(one, Answer) and one.status < SILENT
    ]


def _silent(answers: Mapping[str, Answer | Transient]) -> dict[str, str]:
    return {
        service: one.code if isinstance(one, Transient) else f"HTTP {one.status}"
        for service, one in answers.items()
        if isinstance(one, Transient) or one.status >= SILENT
    }
