"""Lives of subscriptions: what customers do at Stripe, day by day, written once and lived by many."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tests.fakes.stripe import FakeStripe
from tests.fakes.stripe.books import Obj

DAYS = (0, 8, 31, 10, 20)
"""Days before each epoch. A trial of a week ends in the second, a month in the third, retries in the others."""
ID = re.compile(r"[a-z]+(?:_test)?_1Fake\d{14}")


@dataclass
class Life:
    """One customer."""

    fake: FakeStripe
    user_id: UUID
    recipe: str
    customer: str = ""
    card: str = ""
    session: str = ""

    def begin(self) -> None:
        """Become a customer."""
        made = self._call(
            "POST", "/v1/customers", {"email": "a@example.com", "metadata": {"user_id": str(self.user_id)}}
        )
        self.customer = made["id"]

    def buy(self, behaviour: Any = "pays", *, pay: bool = True, **data: Any) -> None:
        """Go to the checkout, and pay there."""
        wanted: Obj = {
            "mode": "subscription",
            "customer": self.customer,
            "line_items": [{"price": "price_pro", "quantity": "1"}],
            "success_url": "https://example.com/",
            "subscription_data": {"metadata": {"user_id": str(self.user_id)}, **data},
        }
        self.session = self._call("POST", "/v1/checkout/sessions", wanted)["id"]
        if pay:
            card = self.fake.card(behaviour)
            self.card = card["id"]
            self.fake.complete(self.session, card)

    def try_it(self) -> None:
        """Begin a trial of a week."""
        self.buy(trial_period_days="7")

    def try_it_then(self, behaviour: Any) -> None:
        """Begin a trial with a card that behaves otherwise at its end."""
        self.try_it()
        self.card_becomes(behaviour)

    def card_becomes(self, behaviour: Any) -> None:
        """Let the card behave otherwise."""
        self.fake.behave(self.card, behaviour)

    def update(self, **params: Any) -> None:
        """Change the subscription."""
        self._call("POST", f"/v1/subscriptions/{self.sub['id']}", params)

    def upgrade(self) -> None:
        """Take the dearer plan, and pay the difference."""
        item = {"id": self.sub["items"]["data"][0]["id"], "price": "price_max"}
        self.update(items=[item], proration_behavior="always_invoice")

    def act(self, verb: str) -> None:
        """Pause or resume."""
        self._call("POST", f"/v1/subscriptions/{self.sub['id']}/{verb}", {})

    def cancel(self) -> None:
        """End it now."""
        self._call("DELETE", f"/v1/subscriptions/{self.sub['id']}", {})

    def leave(self) -> None:
        """Have everything deleted."""
        self._call("DELETE", f"/v1/customers/{self.customer}", {})

    def refund(self, amount: int | None = None) -> None:
        """Get money back."""
        self.fake.refund(self.charge["id"], amount)

    def bounce(self) -> None:
        """Have a bank that does not take the refund."""
        charges = self.fake.all("charge", customer=self.customer)
        (refund,) = (one for charge in charges for one in self.fake.all("refund", charge=charge["id"]))
        self.fake.fail_refund(refund["id"])

    def give_up(self, verb: str) -> None:
        """Let somebody void what is not paid, or mark it uncollectible."""
        for invoice in self.fake.all("invoice", customer=self.customer, status="open"):
            self._call("POST", f"/v1/invoices/{invoice['id']}/{verb}", {})

    def dispute(self) -> None:
        """Go to the bank."""
        self.fake.dispute(self.charge["id"])

    def decide(self, *, won: bool) -> None:
        """Let the bank decide."""
        charges = self.fake.all("charge", customer=self.customer)
        (dispute,) = (one for charge in charges for one in self.fake.all("dispute", charge=charge["id"]))
        self.fake.decide(dispute["id"], won=won)

    def authenticate(self) -> None:
        """Do what the bank asks."""
        self.fake.authenticate(self.sub["latest_invoice"])

    @property
    def sub(self) -> Obj:
        """The newest subscription."""
        return self.fake.all("subscription", customer=self.customer)[-1]

    @property
    def charge(self) -> Obj:
        """The newest charge that went well."""
        return self.fake.all("charge", customer=self.customer, status="succeeded")[-1]

    def _call(self, method: str, path: str, params: Obj) -> Obj:
        return self.fake.api.call(method, path, params)


Step = Callable[[Life], None]
RECIPES: dict[str, tuple[Step | None, ...]] = {
    "tries, pays, and leaves at the end of a month": (
        lambda life: life.try_it(),
        lambda life: life.update(cancel_at_period_end="true"),
    ),
    "tries, cannot pay, finds money": (
        lambda life: life.try_it_then("declines"),
        lambda life: life.card_becomes("pays"),
    ),
    "pays until the card no longer works": (lambda life: life.buy(), lambda life: life.card_becomes("declines")),
    "gets a part of the money back": (lambda life: life.buy(), lambda life: life.refund(900)),
    "gets all of the money back": (lambda life: life.buy(), lambda life: life.refund(), lambda life: life.cancel()),
    "gets all of the money back, which the bank does not take": (
        lambda life: life.buy(),
        lambda life: life.refund(),
        lambda life: life.bounce(),
    ),
    "cannot pay, and what is due is given up": (
        lambda life: life.buy(),
        lambda life: life.card_becomes("declines"),
        lambda life: life.give_up("mark_uncollectible"),
    ),
    "cannot pay, and what is due is voided": (
        lambda life: life.buy(),
        lambda life: life.card_becomes("declines"),
        lambda life: life.give_up("void"),
    ),
    "disputes, and the bank finds for us": (
        lambda life: life.buy(),
        lambda life: life.dispute(),
        lambda life: life.decide(won=True),
    ),
    "disputes, and leaves": (lambda life: life.buy(), lambda life: life.dispute(), lambda life: life.cancel()),
    "leaves and comes back": (lambda life: life.try_it(), lambda life: life.cancel(), lambda life: life.buy()),
    "pauses": (lambda life: life.buy(), lambda life: life.act("pause"), lambda life: life.act("resume")),
    "pays by a debit that fails": (
        lambda life: life.buy("delays"),
        lambda life: life.fake.settle(life.session, good=False),
    ),
    "pays by a debit": (lambda life: life.buy("delays"), lambda life: life.fake.settle(life.session, good=True)),
    "looks and does not buy": (lambda life: life.buy(pay=False),),
    "is declined": (lambda life: life.buy("declines"),),
    "is deleted": (lambda life: life.buy(), None, lambda life: life.leave()),
    "is asked by the bank": (
        lambda life: life.buy(),
        lambda life: life.card_becomes("asks"),
        lambda life: life.authenticate(),
    ),
    "takes the dearer plan": (lambda life: life.buy(), lambda life: life.upgrade()),
    "is given some time": (
        lambda life: life.buy(),
        lambda life: life.update(pause_collection={"behavior": "void"}),
        None,
        lambda life: life.update(pause_collection=""),
    ),
}


@dataclass
class World:
    """Customers of one account, living at once."""

    fake: FakeStripe = field(default_factory=FakeStripe)
    lives: list[Life] = field(default_factory=list[Life])
    _seen: int = 0

    def __post_init__(self) -> None:
        product = self.fake.price(2900, price_id="price_pro")["product"]
        self.fake.feature(product, "pro")
        self.fake.price(5900, product=product, price_id="price_max")

    def populate(self, users: list[UUID]) -> None:
        """Give each user a life, the recipes in turn."""
        names = list(RECIPES)
        for number, user_id in enumerate(users):
            self.lives.append(Life(self.fake, user_id, names[number % len(names)]))

    def live(self, epoch: int) -> list[Obj]:
        """Let an epoch pass; return its events."""
        self.fake.advance(days=DAYS[epoch])
        for life in self.lives:
            if epoch == 0:
                life.begin()
            steps = RECIPES[life.recipe]
            step = steps[epoch] if epoch < len(steps) else None
            if step is not None:
                step(life)
        events = self.fake.events
        new, self._seen = events[self._seen :], len(events)
        return new

    def names(self) -> dict[str, tuple[UUID, str]]:
        """Return whose each object is, and what it is called in any run: the customer's nth of its kind."""
        owners = {life.customer: life.user_id for life in self.lives}
        counts: dict[tuple[str, str], int] = defaultdict(int)
        found = {customer: (user_id, "customer") for customer, user_id in owners.items()}
        for kind, things in self.fake.api.books.kinds.items():
            for thing in things.values():
                customer = self._customer(kind, thing)
                if customer in owners and thing["id"] not in found:
                    counts[customer, kind] += 1
                    found[thing["id"]] = owners[customer], f"{kind} {counts[customer, kind]}"
        return found

    def _customer(self, kind: str, thing: Obj) -> str:
        if kind == "dispute":
            return self.fake.get("charge", thing["charge"])["customer"]
        if kind == "invoice_payment":
            return self.fake.get("invoice", thing["invoice"])["customer"]
        if kind == "balance_transaction":
            source = thing["source"]
            owner = {"ch": "charge", "re": "refund", "du": "dispute"}[source.partition("_")[0]]
            return self._customer(owner, self.fake.get(owner, source))
        return thing.get("customer") or ""
