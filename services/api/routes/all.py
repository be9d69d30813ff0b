"""All routes of the gateway, and what they need."""

from dataclasses import dataclass

from litestar.types import ControllerRouterHandler

from services.api.forwarding import RULES, Forwarder
from services.api.gate import Gate
from services.api.principals import Principals
from services.api.realtime import Realtime
from services.api.routes.audit import audit_routes
from services.api.routes.docs import docs_routes
from services.api.routes.forward import forward_routes
from services.api.routes.health import gateway_health_routes
from services.api.routes.operations import operation_routes
from services.api.routes.realtime import realtime_routes
from services.api.routes.users import key_routes, sign_up_routes, user_routes
from services.api.routes.watchlists import watchlist_routes
from services.api.service import AuditLog, Keys, Users, Watchlists
from services.api.tickets import Tickets
from shared.clock import Clock, NewId
from shared.messaging.door import Door


@dataclass(frozen=True, slots=True)
class Doors:
    """What the routes call."""

    users: Users
    keys: Keys
    watchlists: Watchlists
    audit: AuditLog
    principals: Principals
    gate: Gate
    forwarder: Forwarder
    realtime: Realtime
    tickets: Tickets
    door: Door
    clock: Clock
    new_id: NewId


def handlers(doors: Doors) -> list[ControllerRouterHandler]:
    """Return every route of the gateway."""
    door, clock, new_id = doors.door, doors.clock, doors.new_id
    return [
        *gateway_health_routes(doors.forwarder),
        *sign_up_routes(doors.users, doors.keys, doors.principals, doors.gate, door=door, clock=clock, new_id=new_id),
        *user_routes(doors.users, door, clock, new_id),
        *key_routes(doors.keys, door, clock, new_id),
        *watchlist_routes(doors.watchlists, door, clock, new_id),
        *audit_routes(doors.audit, door),
        *operation_routes(doors.forwarder),
        *realtime_routes(doors.realtime, doors.tickets, clock),
        *docs_routes(doors.forwarder, RULES, clock),
        *forward_routes(doors.forwarder, RULES),
    ]
