"""Operations of one service, for administrators: its failed jobs and its jobs by the clock.

The gateway merges these routes of all services under the same paths, with the service's name in them.
"""

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from pydantic import BaseModel, ConfigDict, Field

from shared.clock import new_id
from shared.contracts.api import ActionAudited
from shared.http.callers import Caller, Who
from shared.http.edge import exchange_of
from shared.http.json import fields, json_response
from shared.http.served import Served

PAGE: Final = 50
MAX_PAGE: Final = 500

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="How many at most")]
Status = Literal["waiting", "held", "dead", "resolved", "discarded"]
HttpRequest = Request[Any, Any, Any]


class Discard(BaseModel):
    """Why a job is given up."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    reason: str = Field(min_length=1, max_length=500)


def ops_routes(service: Served) -> list[HTTPRouteHandler]:
    """Return the routes."""
    return [*_failed_jobs(service), *_jobs(service)]


def _failed_jobs(service: Served) -> list[HTTPRouteHandler]:
    failed, door = service.failed_jobs, service.door

    @get("/ops/failed-jobs", caller=Caller.ADMIN, tags=["operations"])
    async def list_failed_jobs(
        status: Annotated[list[Status] | None, QueryParameter(description="Open ones without it")] = None,
        consumer: FromQuery[str | None] = None,
        fingerprint: FromQuery[str | None] = None,
        before: FromQuery[UUID | None] = None,
        limit: Limit = PAGE,
    ) -> Response[bytes]:
        """List failed jobs, latest first."""
        chosen = {"statuses": status} if status else {}
        async with door.read() as tx:
            rows = await failed.page(
                tx, consumer=consumer, fingerprint=fingerprint, before=before, limit=limit, **chosen
            )
        return json_response({"failed_jobs": rows})

    @get("/ops/failed-jobs/groups", caller=Caller.ADMIN, tags=["operations"])
    async def group_failed_jobs() -> Response[bytes]:
        """Group open failed jobs by what went wrong."""
        async with door.read() as tx:
            return json_response({"groups": await failed.groups(tx)})

    @get("/ops/failed-jobs/{job_id:uuid}", caller=Caller.ADMIN, tags=["operations"])
    async def show_failed_job(job_id: FromPath[UUID]) -> Response[bytes]:
        """Show one failed job with its headers, body and history."""
        async with door.read() as tx:
            return json_response(await failed.show(tx, job_id))

    @post("/ops/failed-jobs/{job_id:uuid}/retry", caller=Caller.ADMIN, status_code=202, tags=["operations"])
    async def retry_failed_job(request: HttpRequest, identity: Who, job_id: FromPath[UUID]) -> Response[bytes]:
        """Run a failed job again as soon as its key allows."""
        request_id = exchange_of(request.scope).request_id
        shown = await door.run(lambda tx: failed.retry(tx, job_id, str(identity.user_id), request_id))
        return json_response(shown, status_code=202)

    @post("/ops/failed-jobs/{job_id:uuid}/discard", caller=Caller.ADMIN, status_code=200, tags=["operations"])
    async def discard_failed_job(
        request: HttpRequest, identity: Who, job_id: FromPath[UUID], data: JSONBody[Discard]
    ) -> Response[bytes]:
        """Give a failed job up for good, with a reason."""
        actor, request_id = str(identity.user_id), exchange_of(request.scope).request_id
        return json_response(await door.run(lambda tx: failed.discard(tx, job_id, actor, data.reason, request_id)))

    return [list_failed_jobs, group_failed_jobs, show_failed_job, retry_failed_job, discard_failed_job]


def _jobs(service: Served) -> list[HTTPRouteHandler]:
    @get("/ops/jobs", caller=Caller.ADMIN, tags=["operations"])
    async def list_jobs() -> Response[bytes]:
        """List the jobs that run by the clock, with their last and next run."""
        jobs = await service.scheduler.jobs()
        return json_response({"jobs": [{"service": service.name, **fields(job)} for job in jobs]})

    @get("/ops/jobs/{job:str}/runs", caller=Caller.ADMIN, tags=["operations"])
    async def list_runs(job: FromPath[str], limit: Limit = PAGE) -> Response[bytes]:
        """List a job's latest runs, newest first."""
        runs = await service.scheduler.runs(job, limit)
        return json_response({"runs": [{"service": service.name, **fields(run)} for run in runs]})

    @post("/ops/jobs/{job:str}/run", caller=Caller.ADMIN, status_code=202, tags=["operations"])
    async def run_job(request: HttpRequest, identity: Who, job: FromPath[str]) -> Response[bytes]:
        """Ask for a run now; a replica picks it up, after a run in progress."""
        now = service.clock()
        told = ActionAudited(
            id=new_id(),
            time=now,
            service=service.name,
            actor=str(identity.user_id),
            action="run.job",
            subject=f"job/{service.name}/{job}",
            at=now,
            request_id=exchange_of(request.scope).request_id,
        )
        await service.scheduler.run_now(job, [told])
        return json_response({"service": service.name, "job": job, "requested": True}, status_code=202)

    return [list_jobs, list_runs, run_job]
