from tests.api.conftest import ada, admin, client, clock, gateway, join, make_gateway

__all__ = ["ada", "admin", "client", "clock", "gateway", "join", "make_gateway"]
