"""Passing requests on to the services that own them.

A request is rebuilt for the upstream, never passed on whole: credentials, cookies, hop headers and whatever a client
may have written into our own headers stay here; a signed identity for that one service goes along.

What would surprise you: where a rule says `stale_s`, the last good answer is given again while the owner is silent,
marked `x-openbell-stale: true` with its age. Such answers are the same for all callers.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from services.api.ports import Answer, Headers, Outgoing, Upstream, UpstreamUnavailable
from shared import telemetry
from shared.clock import Clock
from shared.errors import NotFound
from shared.http import Caller
from shared.identity import HEADER, Identity, Signer

HOP_HEADERS: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_KEPT_HERE: Final = HOP_HEADERS | {
    b"accept-encoding",
    b"authorization",
    b"content-length",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"traceparent",
    b"tracestate",
    b"x-api-key",
    b"x-real-ip",
    b"x-request-id",
}
_OUR_PREFIXES: Final = (b"x-openbell-", b"x-forwarded-")
_KEPT_THERE: Final = HOP_HEADERS | {b"content-length", b"date", b"server", b"x-request-id"}
_SICK: Final = frozenset({502, 503, 504})
_STALE_ANSWERS: Final = 256


@dataclass(frozen=True, slots=True)
class Rule:
    """Paths at and below `prefix` belong to `service`."""

    prefix: str
    service: str
    caller: Caller = Caller.USER
    methods: tuple[str, ...] = ("GET",)
    stale_s: float = 0
    plan: str | None = None
    """The entitlement that callers need (services.api.service.plans)."""


RULES: Final = (
    Rule("/leaderboard", "detector", stale_s=900, plan="pro"),
    Rule("/activity", "detector", plan="pro"),
    Rule("/realtime-options", "data", plan="pro"),
    Rule("/links", "alerts", caller=Caller.LINK, methods=("GET", "POST")),
    Rule("/broker/callbacks", "broker", caller=Caller.PROVIDER, methods=("POST",)),
    Rule("/broker/credentials/rotate", "broker", caller=Caller.ADMIN, methods=("POST",)),
    Rule("/broker", "broker", methods=("GET", "POST", "PUT", "PATCH", "DELETE")),
    Rule("/pay/webhooks", "payment", caller=Caller.PROVIDER, methods=("POST",)),
    Rule("/pay/ledger", "payment", caller=Caller.ADMIN),
    Rule("/pay/manual", "payment", caller=Caller.ADMIN, methods=("POST", "DELETE")),
    Rule("/pay", "payment", methods=("GET", "POST")),
    Rule("/alerts/webhooks", "alerts", caller=Caller.PROVIDER, methods=("POST",)),
    Rule("/api/alerts/suppressions", "alerts", caller=Caller.ADMIN, methods=("GET", "POST")),
    Rule("/api/alerts/targets", "alerts", caller=Caller.ADMIN, methods=("POST",)),
    Rule("/api/alerts", "alerts", methods=("GET", "POST", "PUT", "PATCH", "DELETE")),
)


class Forwarder:
    """Sends requests to services by name."""

    def __init__(self, upstreams: Mapping[str, Upstream], signer: Signer, clock: Clock) -> None:
        self._upstreams = upstreams
        self._signer = signer
        self._clock = clock
        self._last_good: OrderedDict[tuple[str, str, bytes], tuple[float, Answer]] = OrderedDict()

    @property
    def services(self) -> list[str]:
        """The services that can be reached, by name."""
        return sorted(self._upstreams)

    async def send(
        self, service: str, request: Outgoing, *, identity: Identity | None, request_id: str, stale_s: float = 0
    ) -> Answer:
        """Return the service's answer; raises UpstreamUnavailable, and NotFound for a service that is not there."""
        upstream = self._upstreams.get(service)
        if upstream is None:
            raise NotFound(f"there is no service {service!r} here")
        headers = [*headers_for_service(request.headers), (b"x-request-id", request_id.encode())]
        headers += [(name.encode(), value.encode()) for name, value in telemetry.headers()]
        if identity is not None:
            token = self._signer.sign(identity, audience=service, request_id=request_id)
            headers.append((HEADER.encode(), token.encode()))
        outgoing = Outgoing(request.method, request.path, request.query, headers, request.body)
        place = (service, request.path, request.query)
        try:
            answer = await upstream.send(outgoing)
        except UpstreamUnavailable:
            stale = self._stale(place, stale_s)
            if stale is None:
                raise
            return stale
        if answer.status in _SICK:
            return self._stale(place, stale_s) or _from_service(answer)
        answer = _from_service(answer)
        if stale_s and answer.status == 200 and request.method == "GET":  # noqa: PLR2004 - HTTP OK
            self._remember(place, answer)
        return answer

    def _remember(self, place: tuple[str, str, bytes], answer: Answer) -> None:
        self._last_good[place] = (self._clock().timestamp(), answer)
        self._last_good.move_to_end(place)
        if len(self._last_good) > _STALE_ANSWERS:
            self._last_good.popitem(last=False)

    def _stale(self, place: tuple[str, str, bytes], stale_s: float) -> Answer | None:
        known = self._last_good.get(place)
        if known is None:
            return None
        age = self._clock().timestamp() - known[0]
        if age > stale_s:
            return None
        marks = [(b"x-openbell-stale", b"true"), (b"age", str(int(age)).encode())]
        return Answer(known[1].status, [*known[1].headers, *marks], known[1].body)


def headers_for_service(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the client's headers that a service may see."""
    named = _named_by_connection(headers)
    return [
        (name, value)
        for name, value in headers
        if name not in _KEPT_HERE and name not in named and not name.startswith(_OUR_PREFIXES)
    ]


def _from_service(answer: Answer) -> Answer:
    named = _named_by_connection(answer.headers)
    kept = [(name, value) for name, value in answer.headers if name not in _KEPT_THERE and name not in named]
    return Answer(answer.status, kept, answer.body)


def _named_by_connection(headers: Headers) -> set[bytes]:
    return {token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")}


def safe_path(path: str) -> str:
    """Return the path; raises NotFound where another reader could understand another path."""
    if any(segment in {".", ".."} for segment in path.split("/")) or "\\" in path or "//" in path:
        raise NotFound("There is nothing at this address.")
    return path
