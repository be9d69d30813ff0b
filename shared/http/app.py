"""The Litestar app that every service serves."""

from typing import Any, Final

from litestar import Litestar, Request, Router
from litestar.di import Provide
from litestar.exceptions import SerializationException
from litestar.openapi import OpenAPIConfig
from litestar.types import Receive, Scope, Send

from shared.clock import new_id
from shared.errors import Invalid
from shared.http.callers import Caller, Gate, Operators, admission, current_identity, identity_gate, require_callers
from shared.http.document import Document
from shared.http.edge import Edge, has_nul
from shared.http.errors import ErrorAnswers
from shared.http.health import health_operations, health_routes
from shared.http.ops import ops_routes
from shared.http.served import Served
from shared.http.sockets import refusals
from shared.identity import Verifier, identity_secret

MAX_BODY_BYTES: Final = 1_000_000


class CheckedRequest(Request[Any, Any, Any]):
    """A request whose body holds no NUL character."""

    async def body(self) -> bytes:
        """Return the body; raises Invalid when a string in it holds NUL, which Postgres cannot store."""
        body = await super().body()
        if body and has_nul(body, self.content_type[0]):
            raise Invalid("A NUL character is not allowed anywhere in a request.")
        return body

    async def json(self) -> Any:
        """Return the body's JSON; raises SerializationException for what is none, or nested without end."""
        try:
            return await super().json()
        except (UnicodeDecodeError, RecursionError) as error:
            raise SerializationException(str(error)) from error


class App(Litestar):
    """Litestar inside our edge."""

    edge: Edge | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if self.edge is None or scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
        else:
            await self.edge(scope, receive, send)

    async def inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that has passed the edge."""
        await super().__call__(scope, receive, send)


def build_app(service: Served, *, gate: Gate | None = None, operations: bool = True) -> Litestar:
    """Build the app: the service's routes, health, metrics and operations behind one edge.

    `gate` decides who may come in; without one only identities signed by the gateway may. `operations` adds the
    routes over failed jobs, scheduled jobs and health; the gateway has its own, over all services. Raises
    UndeclaredRoute for a route that does not say who may call it, and UnsafeSecret where a development secret is not
    safe.
    """
    secret = identity_secret(service.settings)
    gate = gate or identity_gate(Verifier(secret, service.name, service.clock))
    operators = Operators(service.settings.operator_networks)
    answers = ErrorAnswers(service.name, service.clock)
    app = App(
        route_handlers=[
            *service.handlers,
            *health_routes(service, operators),
            *((*ops_routes(service), *health_operations(service)) if operations else ()),
        ],
        middleware=[refusals(service.clock), admission(gate, operators)],
        dependencies={"identity": Provide(current_identity)},
        exception_handlers={Exception: answers.answer},
        request_class=CheckedRequest,
        request_max_body_size=MAX_BODY_BYTES,
        openapi_config=OpenAPIConfig(
            title=f"Openbell {service.name}",
            version="1",
            use_handler_docstrings=True,
            openapi_router=Router(
                "/ops/schema", route_handlers=[], opt={"caller": Caller.PUBLIC}, include_in_schema=False
            ),
            render_plugins=[Document()],
        ),
        logging_config=None,
        debug=False,
    )
    app.state["service"] = service
    require_callers(app)
    app.edge = Edge(app.inside, service.name, answers, new_id)
    return app
