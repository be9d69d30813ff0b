"""Plans: what is sold, for how much, and what it allows.

Plans come from the settings, and from Stripe's prices that name one in their metadata:

    openbell_plan           the plan's name
    openbell_entitlements   what it allows, separated by commas; the plan's name where it is left out
    openbell_trial_days     days that are free for who never had a subscription; none where it is left out

A plan of the settings wins over one of the same name at Stripe.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

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


PLAN_KEY: Final = "openbell_plan"
_ENTITLEMENTS_KEY: Final = "openbell_entitlements"
_TRIAL_KEY: Final = "openbell_trial_days"
_SOLD_AS: Final = {
    "type": "recurring",
    "billing_scheme": "per_unit",
    "currency": "usd",
    "interval_count": 1,
    "usage_type": "licensed",
}


@dataclass(frozen=True, slots=True)
class Priced:
    """A plan as one of Stripe's prices describes it. `active`: it can be bought."""

    plan: Plan
    price: str
    active: bool
    created: int


def names_plan(price: Mapping[str, Any]) -> bool:
    """Whether a price of Stripe's names a plan."""
    return PLAN_KEY in (price.get("metadata") or {})


def priced(price: Mapping[str, Any], title: str | None, *, active: bool) -> Priced:
    """Return the plan that a price names. Raises ValueError for a price that cannot be one of our plans."""
    recurring: Mapping[str, Any] = price.get("recurring") or {}
    for name, wanted in _SOLD_AS.items():
        if (said := price.get(name, recurring.get(name))) != wanted:
            raise ValueError(f"the price of a plan has {name} {wanted!r}, not {said!r}")
    about: Mapping[str, str] = price["metadata"]
    allowed = [one.strip() for one in about.get(_ENTITLEMENTS_KEY, "").split(",") if one.strip()]
    plan = Plan.model_validate(
        {
            "name": about[PLAN_KEY],
            "title": title or about[PLAN_KEY],
            "price_usd": Decimal(price.get("unit_amount") or 0).scaleb(-2),
            "period": recurring.get("interval"),
            "entitlements": allowed or [about[PLAN_KEY]],
            "trial_days": about.get(_TRIAL_KEY, 0),
            "stripe_price": price["id"],
        }
    )
    return Priced(plan, price["id"], active, price.get("created") or 0)


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

    def beside(self, found: Iterable[Priced]) -> "Plans":
        """Return these plans and those that Stripe's prices name; a price that is named here stays with its plan.

        Of several prices that name one plan, the newest that can be bought is sold. Without such a one the plan is
        sold no more, and is known for those who have it.
        """
        theirs = [one for one in found if one.price not in self._by_price]
        by_age = sorted(theirs, key=lambda one: (one.active, one.created, one.price))
        newest = {one.plan.name: one for one in by_age}
        more = [
            one.plan if one.active else one.plan.model_copy(update={"stripe_price": None})
            for name, one in newest.items()
            if name not in self._by_name
        ]
        both = Plans([*self._by_name.values(), *more])
        both._by_price |= {one.price: both[one.plan.name] for one in by_age}
        return both

    def of_price(self, price: str) -> Plan | None:
        """Return the plan that a Stripe price belongs to."""
        return self._by_price.get(price)
