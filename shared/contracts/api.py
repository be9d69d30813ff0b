"""What the gateway tells: users, their watchlists, and the audit trail (which every service may write)."""

from decimal import Decimal
from typing import Any, ClassVar, Literal
from uuid import UUID

from pydantic import AwareDatetime, Field

from shared.contracts.base import Event
from shared.contracts.topics import AUDIT, USERS, WATCHLISTS, Topic

Role = Literal["user", "admin"]
InvestingStyle = Literal["value", "growth", "income", "momentum", "trader"]


class _UserFact(Event):
    topic: ClassVar[Topic] = USERS

    user_id: UUID

    @property
    def key(self) -> str:
        """The user."""
        return str(self.user_id)


class UserSignedUp(_UserFact):
    """A new user exists."""

    type: ClassVar[str] = "api.user.signed_up.v1"

    email: str
    role: Role


class UserOnboarded(_UserFact):
    """A user told how they invest. Their first tickers follow as watchlist events."""

    type: ClassVar[str] = "api.user.onboarded.v1"

    investing_style: InvestingStyle


class UserSettingsChanged(_UserFact):
    """The user's settings as they are now, all of them."""

    type: ClassVar[str] = "api.user.settings_changed.v1"

    timezone: str
    alerts_enabled: bool
    min_score: float
    min_premium_usd: Decimal
    investing_style: InvestingStyle | None = None  # None until onboarding


class _WatchlistFact(Event):
    topic: ClassVar[Topic] = WATCHLISTS

    user_id: UUID
    symbol: str

    @property
    def key(self) -> str:
        """The user."""
        return str(self.user_id)


class StockAdded(_WatchlistFact):
    """A user watches a symbol, with the settings that they had for it before."""

    type: ClassVar[str] = "api.watchlist.stock_added.v1"

    alerts_enabled: bool = True


class StockSettingsChanged(_WatchlistFact):
    """The settings of a watched stock as they are now, as far as others need them."""

    type: ClassVar[str] = "api.watchlist.stock_settings_changed.v1"

    alerts_enabled: bool


class StockRemoved(_WatchlistFact):
    """A user no longer watches a symbol."""

    type: ClassVar[str] = "api.watchlist.stock_removed.v1"


class ActionAudited(Event):
    """Somebody did something that an auditor asks about later."""

    type: ClassVar[str] = "api.action.audited.v1"
    topic: ClassVar[Topic] = AUDIT

    service: str
    actor: str  # user id, "system", or "public"
    action: str  # verb.noun, e.g. "discard.failed_job"
    subject: str
    at: AwareDatetime
    request_id: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """The subject: what happened to one thing stays in order."""
        return self.subject
