"""Use cases of the gateway: users and their settings, API keys, watchlists, plans, the audit log."""

from services.api.service.audit import AuditLog
from services.api.service.by import By
from services.api.service.feed import Feed
from services.api.service.keys import Keys
from services.api.service.plans import Plans
from services.api.service.users import Users
from services.api.service.watchlists import Watchlists

__all__ = ["AuditLog", "By", "Feed", "Keys", "Plans", "Users", "Watchlists"]
