"""Traces: OpenTelemetry, through HTTP and Kafka headers; exported when an OTLP endpoint is set, free when not."""

import contextlib
from collections.abc import Generator, Sequence
from typing import Final

from opentelemetry import propagate, trace

from shared.messaging.record import Record
from shared.settings import SharedSettings

_tracer: Final = trace.get_tracer("openbell")
_exporting = False


def configure(settings: SharedSettings, service: str) -> None:
    """Export sampled traces to the OTLP endpoint; without one, do nothing."""
    if settings.otlp_endpoint is None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - 20 MB unless used
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - same
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - same
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - same
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415 - same

    provider = TracerProvider(
        resource=Resource.create({"service.name": f"openbell-{service}"}),
        sampler=ParentBasedTraceIdRatio(settings.trace_sample_ratio),
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")))
    trace.set_tracer_provider(provider)
    global _exporting  # noqa: PLW0603 - a process exports or it does not
    _exporting = True


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


@contextlib.contextmanager
def serving(name: str, traceparent: bytes | None) -> Generator[None]:
    """Trace the answer to an HTTP request, as a child of its caller's trace."""
    parent = propagate.extract({"traceparent": traceparent.decode("ascii", "replace")}) if traceparent else None
    with _tracer.start_as_current_span(name, parent, trace.SpanKind.SERVER):
        yield


@contextlib.contextmanager
def processing(consumer: str, records: Sequence[Record]) -> Generator[None]:
    """Trace the handling of records: a child of a single record's trace, linked to each of several."""
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
    parent = contexts[0] if len(records) == 1 else None
    links = [] if parent else [trace.Link(trace.get_current_span(one).get_span_context()) for one in contexts]
    with _tracer.start_as_current_span(f"process {consumer}", parent, trace.SpanKind.CONSUMER, links=links):
        yield
