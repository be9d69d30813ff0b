"""Operations of one service, for administrators: failed jobs, runs, topics, lag, and jobs by the clock.

The gateway merges these routes of all services under the same paths, with the service's name in them. Every POST takes
an Idempotency-Key.
"""

from typing import Annotated, Any, Final
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from pydantic import AwareDatetime

from shared import idempotency  # the module: it imports shared.http.json, whose package imports this one
from shared.clock import new_id
from shared.contracts.api import ActionAudited
from shared.db import Tx
from shared.http.callers import Caller, Who
from shared.http.edge import exchange_of
from shared.http.json import fields, json_response
from shared.http.orders import Discard, DiscardMany, EditJob, Redirect, RetryMany, Selection, StartReplay
from shared.http.served import Served
from shared.identity import Identity
from shared.messaging.door import Done
from shared.messaging.ops import By, Status
from shared.messaging.ops.bulk import Order

PAGE: Final = 50
MAX_PAGE: Final = 500

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_PAGE, description="How many at most")]
Statuses = Annotated[list[Status] | None, QueryParameter(description="Open ones without it")]
HttpRequest = Request[Any, Any, Any]


def ops_routes(service: Served) -> list[HTTPRouteHandler]:
    """Return the routes."""
    return [
        *_failed_jobs(service),
        *_acts(service),
        *_bulk(service),
        *_runs(service),
        *_kafka(service),
        *_jobs(service),
    ]


def _by(request: HttpRequest, identity: Identity) -> By:
    return By(str(identity.user_id), exchange_of(request.scope).request_id)


def _failed_jobs(service: Served) -> list[HTTPRouteHandler]:
    @get("/ops/failed-jobs", caller=Caller.ADMIN, tags=["operations"])
    async def list_failed_jobs(  # noqa: PLR0917 - Litestar passes by name
        status: Statuses = None,
        consumer: FromQuery[str | None] = None,
        fingerprint: FromQuery[str | None] = None,
        code: FromQuery[str | None] = None,
        since: FromQuery[AwareDatetime | None] = None,
        until: FromQuery[AwareDatetime | None] = None,
        before: FromQuery[UUID | None] = None,
        limit: Limit = PAGE,
    ) -> Response[bytes]:
        """List failed jobs, latest first."""
        chosen: dict[str, Any] = {"statuses": status} if status else {}
        async with service.door.read() as tx:
            rows = await service.operations.failed_jobs.page(
                tx,
                consumer=consumer,
                fingerprint=fingerprint,
                code=code,
                since=since,
                until=until,
                before=before,
                limit=limit,
                **chosen,
            )
        return json_response({"failed_jobs": rows})

    @get("/ops/failed-jobs/groups", caller=Caller.ADMIN, tags=["operations"])
    async def group_failed_jobs() -> Response[bytes]:
        """Group open failed jobs by what went wrong."""
        async with service.door.read() as tx:
            return json_response({"groups": await service.operations.failed_jobs.groups(tx)})

    @get("/ops/failed-jobs/{job_id:uuid}", caller=Caller.ADMIN, tags=["operations"])
    async def show_failed_job(job_id: FromPath[UUID]) -> Response[bytes]:
        """Show one failed job with its headers, body and history."""
        async with service.door.read() as tx:
            return json_response(await service.operations.failed_jobs.show(tx, job_id))

    return [list_failed_jobs, group_failed_jobs, show_failed_job]


def _acts(service: Served) -> list[HTTPRouteHandler]:
    @post("/ops/failed-jobs/{job_id:uuid}/retry", caller=Caller.ADMIN, status_code=202, tags=["operations"])
    async def retry_failed_job(request: HttpRequest, identity: Who, job_id: FromPath[UUID]) -> Response[bytes]:
        """Run a failed job again as soon as its key allows."""
        by, jobs = _by(request, identity), service.operations.failed_jobs
        return await idempotency.answer_once(
            request, service.door, lambda tx: jobs.retry(tx, job_id, by.actor, by.request_id), status_code=202
        )

    @post("/ops/failed-jobs/{job_id:uuid}/edit", caller=Caller.ADMIN, status_code=202, tags=["operations"])
    async def edit_failed_job(
        request: HttpRequest, identity: Who, job_id: FromPath[UUID], data: JSONBody[EditJob]
    ) -> Response[bytes]:
        """Put a mended event, with an id of its own, in a failed job's place and run it as soon as its key allows."""
        by, jobs = _by(request, identity), service.operations.failed_jobs
        change = data.change()
        return await idempotency.answer_once(
            request, service.door, lambda tx: jobs.edit(tx, job_id, by, change), status_code=202
        )

    @post("/ops/failed-jobs/{job_id:uuid}/redirect", caller=Caller.ADMIN, status_code=202, tags=["operations"])
    async def redirect_failed_job(
        request: HttpRequest, identity: Who, job_id: FromPath[UUID], data: JSONBody[Redirect]
    ) -> Response[bytes]:
        """Publish a failed job's record to a topic of this service or to a dead-letter topic of its consumers."""
        by, jobs = _by(request, identity), service.operations.failed_jobs
        return await idempotency.answer_once(
            request, service.door, lambda tx: jobs.redirect(tx, job_id, by, data.topic), status_code=202
        )

    @post("/ops/failed-jobs/{job_id:uuid}/discard", caller=Caller.ADMIN, status_code=200, tags=["operations"])
    async def discard_failed_job(
        request: HttpRequest, identity: Who, job_id: FromPath[UUID], data: JSONBody[Discard]
    ) -> Response[bytes]:
        """Give a failed job up for good, with a reason."""
        by, jobs = _by(request, identity), service.operations.failed_jobs
        return await idempotency.answer_once(
            request,
            service.door,
            lambda tx: jobs.discard(tx, job_id, by.actor, data.reason, by.request_id),
            status_code=200,
        )

    return [retry_failed_job, edit_failed_job, redirect_failed_job, discard_failed_job]


def _bulk(service: Served) -> list[HTTPRouteHandler]:
    async def act(request: HttpRequest, identity: Identity, order: Order, data: Selection) -> Response[bytes]:
        """Say what would be done, or begin it."""
        operations, by = service.operations, _by(request, identity)

        async def use_case(tx: Tx) -> Done[dict[str, Any]]:
            preview = await operations.bulk.preview(tx, order, data.cap)
            run = None if data.dry_run else await operations.runs.start_bulk(tx, order, data.cap, by)
            return Done({"service": service.name, "dry_run": data.dry_run, **preview, "run": run})

        return await idempotency.answer_once(request, service.door, use_case, status_code=202)

    @post("/ops/failed-jobs/retry", caller=Caller.ADMIN, status_code=202, tags=["operations"])
    async def retry_failed_jobs(request: HttpRequest, identity: Who, data: JSONBody[RetryMany]) -> Response[bytes]:
        """Run many failed jobs again, or say with `dry_run` which ones that would be."""
        order = Order("retry", data.chosen(), str(identity.user_id), rate=data.rate)
        return await act(request, identity, order, data)

    @post("/ops/failed-jobs/discard", caller=Caller.ADMIN, status_code=202, tags=["operations"])
    async def discard_failed_jobs(request: HttpRequest, identity: Who, data: JSONBody[DiscardMany]) -> Response[bytes]:
        """Give many failed jobs up, or say with `dry_run` which ones that would be."""
        order = Order("discard", data.chosen(), str(identity.user_id), rate=data.rate, reason=data.reason)
        return await act(request, identity, order, data)

    return [retry_failed_jobs, discard_failed_jobs]


def _runs(service: Served) -> list[HTTPRouteHandler]:
    @post("/ops/replays", caller=Caller.ADMIN, status_code=202, tags=["operations"])
    async def start_replay(request: HttpRequest, identity: Who, data: JSONBody[StartReplay]) -> Response[bytes]:
        """Read a topic's range again into one consumer, in the background; one replay at a time for each."""
        by = _by(request, identity)

        async def use_case(tx: Tx) -> Done[dict[str, Any]]:
            run = await service.operations.runs.start_replay(
                tx, data.consumer, data.range(), by, again=data.again, dry_run=data.dry_run, rate=data.rate
            )
            return Done(run)

        return await idempotency.answer_once(request, service.door, use_case, status_code=202)

    @get("/ops/runs", caller=Caller.ADMIN, tags=["operations"])
    async def list_operations(limit: Limit = PAGE) -> Response[bytes]:
        """List bulk actions and replays, newest first."""
        async with service.door.read() as tx:
            return json_response({"runs": await service.operations.runs.page(tx, limit)})

    @get("/ops/runs/{run_id:uuid}", caller=Caller.ADMIN, tags=["operations"])
    async def show_operation(run_id: FromPath[UUID]) -> Response[bytes]:
        """Show how far a bulk action or replay is."""
        async with service.door.read() as tx:
            return json_response(await service.operations.runs.show(tx, run_id))

    @post("/ops/runs/{run_id:uuid}/cancel", caller=Caller.ADMIN, status_code=202, tags=["operations"])
    async def cancel_operation(request: HttpRequest, identity: Who, run_id: FromPath[UUID]) -> Response[bytes]:
        """Ask a bulk action or replay to stop; what it did stays."""
        by = _by(request, identity)
        return await idempotency.answer_once(
            request, service.door, lambda tx: service.operations.runs.cancel(tx, run_id, by), status_code=202
        )

    return [start_replay, list_operations, show_operation, cancel_operation]


def _kafka(service: Served) -> list[HTTPRouteHandler]:
    @get("/ops/topics", caller=Caller.ADMIN, tags=["operations"])
    async def list_topics() -> Response[bytes]:
        """List the service's topics and dead-letter topics, with what each partition holds."""
        return json_response({"topics": await service.operations.positions.topics()})

    @get("/ops/lag", caller=Caller.ADMIN, tags=["operations"])
    async def list_lag() -> Response[bytes]:
        """List how far each consumer's partitions are behind Kafka's end, in records and seconds."""
        return json_response({"lag": await service.operations.positions.lag()})

    return [list_topics, list_lag]


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
        by = _by(request, identity)
        told = ActionAudited(
            id=new_id(),
            time=now,
            service=service.name,
            actor=by.actor,
            action="run.job",
            subject=f"job/{service.name}/{job}",
            at=now,
            request_id=by.request_id,
        )

        async def use_case(tx: Tx) -> Done[dict[str, Any]]:
            await service.scheduler.request(job, tx)
            return Done({"service": service.name, "job": job, "requested": True}, [told])

        return await idempotency.answer_once(request, service.door, use_case, status_code=202)

    return [list_jobs, list_runs, run_job]
