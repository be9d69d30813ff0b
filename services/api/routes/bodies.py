"""The bodies that clients send. What is not named here is refused."""

from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, EmailStr, Field

from services.api.domain import MAX_WATCHED, symbol, timezones
from shared.contracts.api import InvestingStyle, Role
from shared.errors import Invalid


def _symbol(raw: str) -> str:
    try:
        return symbol(raw)
    except Invalid as error:
        raise ValueError("not a symbol, such as AAPL or BRK.B") from error


def _timezone(name: str) -> str:
    if name not in timezones():
        raise ValueError("not a time zone of the IANA database, such as America/New_York")
    return name


def _flag(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 - pydantic wants a ValueError
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")  # noqa: TRY004 - pydantic wants ValueError
    return value


# Litestar validates laxly whatever a field says, and pydantic's lax mode takes "yes" for true and true for 1.
Symbol = Annotated[str, Field(max_length=20), AfterValidator(_symbol)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Score = Annotated[float, BeforeValidator(_number), Field(ge=0, le=100, allow_inf_nan=False)]
Usd = Annotated[Decimal, BeforeValidator(_number), Field(ge=0, max_digits=16, decimal_places=2, allow_inf_nan=False)]


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SignUp(Body):
    """A new user."""

    email: Annotated[EmailStr, Field(max_length=254)]


class Onboarding(Body):
    """How a user invests, and their first stocks."""

    investing_style: InvestingStyle
    tickers: Annotated[list[Symbol], Field(max_length=MAX_WATCHED)] = []


class SettingsPatch(Body):
    """The settings to change; what is left out stays."""

    timezone: Annotated[str, AfterValidator(_timezone)] = ""
    alerts_enabled: Flag = True
    min_score: Score = 0
    min_premium_usd: Usd = Decimal(0)
    investing_style: InvestingStyle = "value"


class NewKey(Body):
    """A new API key."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    role: Role = "user"


class AddStock(Body):
    """A stock to watch."""

    ticker: Symbol


class StockPatch(Body):
    """The settings of one watched stock to change; what is left out stays."""

    alerts_enabled: Flag = True
    note: Annotated[str, Field(max_length=2000)] = ""
