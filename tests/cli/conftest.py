from tests.api.conftest import admin, client, clock, gateway, join, make_gateway

__all__ = ["admin", "client", "clock", "gateway", "join", "make_gateway"]
