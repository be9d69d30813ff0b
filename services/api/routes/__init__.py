"""Door 2: the HTTP routes of the gateway."""

from services.api.routes.all import Doors, handlers

__all__ = ["Doors", "handlers"]
