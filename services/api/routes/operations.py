"""Operations over all services, for administrators: failed jobs and jobs by the clock.

Each service has these routes for itself (shared.http.ops); here they are merged, and one thing is addressed as
`{service}/{id}`. What a service that does not answer would have added is missing, and `unavailable` names it.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody

from services.api.forwarding import Forwarder
from services.api.ports import Answer, Outgoing
from services.api.routes.bodies import DiscardReason
from services.api.routes.common import HttpRequest
from services.api.routes.forward import response_of
from shared.errors import OpenbellError
from shared.http import Caller, exchange_of
from shared.http.json import encode, json_response
from shared.http.ops import PAGE, Limit, Status

JSON: Final = ((b"content-type", b"application/json"),)


def operation_routes(forwarder: Forwarder) -> list[HTTPRouteHandler]:
    """Return the routes."""
    merged = Merged(forwarder)

    @get("/ops/failed-jobs", caller=Caller.ADMIN, tags=["operations"])
    async def list_failed_jobs(
        request: HttpRequest,
        status: FromQuery[list[Status] | None] = None,
        consumer: FromQuery[str | None] = None,
        fingerprint: FromQuery[str | None] = None,
        limit: Limit = PAGE,
    ) -> Response[bytes]:
        """List failed jobs of all services, latest first."""
        query = {"status": status, "consumer": consumer, "fingerprint": fingerprint, "limit": limit}
        return await merged.lists(request, "/ops/failed-jobs", "failed_jobs", query, latest_by="failed_at")

    @get("/ops/failed-jobs/groups", caller=Caller.ADMIN, tags=["operations"])
    async def group_failed_jobs(request: HttpRequest) -> Response[bytes]:
        """Group open failed jobs of all services by what went wrong, latest first."""
        return await merged.lists(request, "/ops/failed-jobs/groups", "groups", {}, latest_by="last_at")

    @get("/ops/failed-jobs/{service:str}", caller=Caller.ADMIN, tags=["operations"])
    async def list_service_failed_jobs(request: HttpRequest, service: FromPath[str]) -> Response[bytes]:
        """List the failed jobs of one service, by page."""
        return await merged.one(request, service, "/ops/failed-jobs")

    @get("/ops/failed-jobs/{service:str}/{job_id:uuid}", caller=Caller.ADMIN, tags=["operations"])
    async def show_failed_job(request: HttpRequest, service: FromPath[str], job_id: FromPath[UUID]) -> Response[bytes]:
        """Show one failed job with its headers, body and history."""
        return await merged.one(request, service, f"/ops/failed-jobs/{job_id}")

    @post(
        "/ops/failed-jobs/{service:str}/{job_id:uuid}/retry", caller=Caller.ADMIN, status_code=202, tags=["operations"]
    )
    async def retry_failed_job(request: HttpRequest, service: FromPath[str], job_id: FromPath[UUID]) -> Response[bytes]:
        """Run a failed job again as soon as its key allows."""
        return await merged.one(request, service, f"/ops/failed-jobs/{job_id}/retry")

    @post(
        "/ops/failed-jobs/{service:str}/{job_id:uuid}/discard",
        caller=Caller.ADMIN,
        status_code=200,
        tags=["operations"],
    )
    async def discard_failed_job(
        request: HttpRequest, service: FromPath[str], job_id: FromPath[UUID], data: JSONBody[DiscardReason]
    ) -> Response[bytes]:
        """Give a failed job up for good, with a reason."""
        body = encode(data)
        return await merged.one(request, service, f"/ops/failed-jobs/{job_id}/discard", body)

    @get("/ops/jobs", caller=Caller.ADMIN, tags=["operations"])
    async def list_jobs(request: HttpRequest) -> Response[bytes]:
        """List the jobs that run by the clock, of all services."""
        return await merged.lists(request, "/ops/jobs", "jobs", {})

    @get("/ops/jobs/{service:str}/{job:str}/runs", caller=Caller.ADMIN, tags=["operations"])
    async def list_runs(request: HttpRequest, service: FromPath[str], job: FromPath[str]) -> Response[bytes]:
        """List a job's latest runs, newest first."""
        return await merged.one(request, service, f"/ops/jobs/{job}/runs")

    @post("/ops/jobs/{service:str}/{job:str}/run", caller=Caller.ADMIN, status_code=202, tags=["operations"])
    async def run_job(request: HttpRequest, service: FromPath[str], job: FromPath[str]) -> Response[bytes]:
        """Ask for a run now."""
        return await merged.one(request, service, f"/ops/jobs/{job}/run")

    return [
        list_failed_jobs,
        group_failed_jobs,
        list_service_failed_jobs,
        show_failed_job,
        retry_failed_job,
        discard_failed_job,
        list_jobs,
        list_runs,
        run_job,
    ]


class Merged:
    """Asks services on an administrator's behalf."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    async def one(self, request: HttpRequest, service: str, path: str, body: bytes = b"") -> Response[bytes]:
        """Return one service's answer."""
        answer = await self._ask(request, service, path, request.scope["query_string"], body)
        return response_of(request, answer)

    async def lists(
        self, request: HttpRequest, path: str, name: str, query: Mapping[str, Any], latest_by: str | None = None
    ) -> Response[bytes]:
        """Return every service's list as one."""
        given = {key: value for key, value in query.items() if value is not None}
        encoded = urlencode(given, doseq=True).encode()
        services = self._forwarder.services
        parts = await asyncio.gather(*(self._part(request, service, path, encoded, name) for service in services))
        rows = [row for part in parts if isinstance(part, list) for row in part]
        if latest_by:
            rows.sort(key=lambda row: str(row[latest_by]), reverse=True)
        silent = {service: part for service, part in zip(services, parts, strict=True) if isinstance(part, str)}
        limit = query.get("limit")
        return json_response({name: rows[:limit] if limit else rows, "unavailable": silent})

    async def _part(
        self, request: HttpRequest, service: str, path: str, query: bytes, name: str
    ) -> list[dict[str, Any]] | str:
        try:
            answer = await self._ask(request, service, path, query, b"")
        except OpenbellError as error:
            return error.code
        if answer.status != 200:  # noqa: PLR2004 - HTTP OK
            return f"HTTP {answer.status}"
        return cast("list[dict[str, Any]]", msgspec.json.decode(answer.body)[name])

    async def _ask(self, request: HttpRequest, service: str, path: str, query: bytes, body: bytes) -> Answer:
        outgoing = Outgoing(request.method, path, query, JSON, body)
        return await self._forwarder.send(
            service, outgoing, identity=request.scope["user"], request_id=exchange_of(request.scope).request_id
        )
