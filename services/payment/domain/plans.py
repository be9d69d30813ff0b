"""Plans: what is sold, for how much, and what it allows."""

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.errors import NotFound

Period = Literal["month", "year"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class Plan(BaseModel):
    """What is sold. `stripe_price` is Stripe's id of its price; without it the plan is not sold by card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    title: str
    price_usd: Decimal = Field(gt=0, le=100_000, decimal_places=2)
    period: Period = "month"
    entitlements: tuple[Name, ...] = Field(min_length=1)
    trial_days: int = Field(default=0, ge=0, le=365)
    stripe_price: str | None = None


class Plans(Mapping[str, Plan]):
    """All plans by name."""

    def __init__(self, plans: Iterable[Plan]) -> None:
        listed = tuple(plans)
        self._by_name = {plan.name: plan for plan in listed}
        self._by_price = {plan.stripe_price: plan for plan in listed if plan.stripe_price is not None}
        if len(self._by_name) < len(listed):
            raise ValueError("two plans have one name")
        if len(self._by_price) < sum(plan.stripe_price is not None for plan in listed):
            raise ValueError("two plans have one Stripe price")

    def named(self, name: str) -> Plan:
        """Return the plan; raises NotFound."""
        if name not in self._by_name:
            raise NotFound("there is no such plan", plan=name, plans=sorted(self._by_name))
        return self._by_name[name]

    def __getitem__(self, name: str) -> Plan:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def of_price(self, price: str) -> Plan | None:
        """Return the plan that a Stripe price belongs to."""
        return self._by_price.get(price)
