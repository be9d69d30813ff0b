"""The HTTP side that all services share: `build_app(service)`, `Caller`, and what a handler needs.

Errors have one shape, each route says who may call it, and health, metrics and operations come with the app.
"""

from shared.http.app import App, build_app
from shared.http.callers import Caller, Gate, Who, body_of, header, routes
from shared.http.edge import Exchange, exchange_of
from shared.http.served import Served

__all__ = [
    "App",
    "Caller",
    "Exchange",
    "Gate",
    "Served",
    "Who",
    "body_of",
    "build_app",
    "exchange_of",
    "header",
    "routes",
]
