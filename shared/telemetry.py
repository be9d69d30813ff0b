"""Traces: OpenTelemetry, through HTTP and Kafka headers; exported when an OTLP endpoint is set, free when not."""

import contextlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Final

from opentelemetry import propagate, trace
from sqlalchemy import text

from shared.db import Tx
from shared.messaging.record import Record
from shared.settings import SharedSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_tracer: Final = trace.get_tracer("openbell")
_REMEMBER: Final = text("select set_config('openbell.traceparent', :value, true)")
_exporting = False


def configure(settings: SharedSettings, service: str) -> None:
    """Export sampled traces to the OTLP endpoint; without one, do nothing."""
    if settings.otlp_endpoint is None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - 20 MB unless used
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - same

    exporter = OTLPSpanExporter(f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
    export(BatchSpanProcessor(exporter), service, settings.trace_sample_ratio)


def export(processor: "SpanProcessor", service: str, ratio: float) -> None:
    """Hand sampled spans to a processor: that share of the traces that begin here, and of others what began sampled."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - 20 MB unless used
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - same
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415 - same

    provider = TracerProvider(
        resource=Resource.create({"service.name": f"openbell-{service}"}),
        sampler=ParentBasedTraceIdRatio(ratio),
    )
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    enable(on=True)


def enable(*, on: bool) -> None:
    """Make spans, or none."""
    global _exporting  # noqa: PLW0603 - a process exports or it does not
    _exporting = on


def exporting() -> bool:
    """Whether traces go anywhere; hot paths make no spans otherwise."""
    return _exporting


def headers() -> list[tuple[str, str]]:
    """Return the headers that carry the current trace to somebody else."""
    carrier: dict[str, str] = {}
    if _exporting:
        propagate.inject(carrier)
    return list(carrier.items())


@contextlib.contextmanager
def working(name: str) -> Generator[None]:
    """Trace a piece of work that nothing from outside began: a clock, a poller, a worker."""
    if not _exporting:
        yield
        return
    with _tracer.start_as_current_span(name):
        yield


async def remember(tx: Tx) -> None:
    """Let the rows that a transaction writes carry its trace on: columns `traceparent` have it as their default."""
    for name, value in headers():
        if name == "traceparent":
            await tx.execute(_REMEMBER, value=value)


@contextlib.contextmanager
def following(name: str, traceparent: str | None) -> Generator[None]:
    """Trace work that a row asks for, as a child of what wrote the row."""
    if not _exporting:
        yield
        return
    parent = propagate.extract({"traceparent": traceparent}) if traceparent else None
    with _tracer.start_as_current_span(name, parent):
        yield


@contextlib.contextmanager
def serving(name: str, traceparent: bytes | None) -> Generator[None]:
    """Trace the answer to an HTTP request, as a child of its caller's trace."""
    parent = propagate.extract({"traceparent": traceparent.decode("ascii", "replace")}) if traceparent else None
    with _tracer.start_as_current_span(name, parent, trace.SpanKind.SERVER):
        yield


@contextlib.contextmanager
def processing(consumer: str, records: Sequence[Record]) -> Generator[None]:
    """Trace the handling of records: a child of the one trace that they are of, or linked to each of several."""
    if not _exporting:
        yield
        return
    contexts = [
        propagate.extract({"traceparent": header.decode("ascii", "replace")})
        for record in records
        if (header := record.header(b"traceparent")) is not None
    ]
    if not contexts:
        yield
        return
    causes = [trace.get_current_span(one).get_span_context() for one in contexts]
    parent = contexts[0] if len({cause.trace_id for cause in causes}) == 1 else None
    links = [] if parent else [trace.Link(cause) for cause in causes]
    with _tracer.start_as_current_span(f"process {consumer}", parent, trace.SpanKind.CONSUMER, links=links):
        yield
