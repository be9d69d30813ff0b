"""A stand-in for Stripe: a real HTTP server with an account behind it, whose clock moves when it is told.

    with FakeStripe() as fake:
        client = fake.client()                       # stripe-python's own, of the pinned version
        price = fake.price(2900)                     # a monthly price, with a product
        session = await client.v1.checkout.sessions.create_async({...})
        fake.complete(session.id, fake.card("pays")) # the customer's hands: pays, declines, asks (3DS), delays (debit)
        fake.advance(days=31)                        # trials end, periods renew, payments are tried again
        body, headers = fake.signed(fake.events[-1]) # a webhook, to be posted in any order, or never
        fake.fail("POST", "/v1/customers", Fault(0, effect=True))  # done, and never answered

What it holds to: shapes of API 2026-10-28.endive (tests compare them with stripe-python's types and the official
fixtures), parameters that stripe-python's types know (others: 400), idempotency keys for 24 h, pages newest first,
events for what changes, invoices finalized after an hour and tried again on `retry_days`, checkout sessions that
expire, search that lags. Nothing tells an event to anybody: a test posts it, or marks it `delivered`.
"""

import contextlib
import json
from typing import Any, Self, cast

import httpx
import stripe

from tests.fakes.serving import serving
from tests.fakes.stripe.api import Api
from tests.fakes.stripe.books import API_VERSION, Obj
from tests.fakes.stripe.money import Behaviour
from tests.fakes.stripe.subscriptions import AfterRetries
from tests.fakes.stripe.wire import Fault, Request, Wire

__all__ = ["API_VERSION", "WEBHOOK_SECRET", "FakeStripe", "Fault", "Request"]

KEY = "sk_test_fakeFAKEfakeFAKE1234"
WEBHOOK_SECRET = "whsec_fakeFAKEfakeFAKE1234"
BEGIN = 1_790_000_000


class FakeStripe:
    """Stripe on 127.0.0.1 between `with` and its end; its `app` answers in process at any time."""

    def __init__(
        self,
        now: int = BEGIN,
        *,
        key: str = KEY,
        webhook_secret: str = WEBHOOK_SECRET,
        retry_days: tuple[int, ...] = (3, 5, 7),
        after_retries: AfterRetries = "cancel",
        search_lag_s: int = 60,
    ) -> None:
        self.url = ""
        self.key = key
        self.webhook_secret = webhook_secret
        self.api = Api(now, retry_days, after_retries, search_lag_s)
        self.wire = Wire(self.api, key)
        self.app = self.wire.app
        self._clients: dict[tuple[str, int, float], stripe.StripeClient] = {}
        self._https: list[_Http] = []
        self._served = contextlib.ExitStack()

    @property
    def now(self) -> int:
        """The account's clock, in Unix seconds."""
        return self.api.books.now

    @property
    def events(self) -> list[Obj]:
        """All events, oldest first."""
        return list(self.api.books.events.values())

    @property
    def requests(self) -> list[Request]:
        """All requests that came, oldest first."""
        return self.wire.requests

    def client(self, retries: int = 0, timeout_s: float = 30) -> stripe.StripeClient:
        """Return a real client of this account, over HTTP; the same one for the same options."""
        return self._client(self.url, retries, timeout_s)

    def direct(self) -> stripe.StripeClient:
        """Return a real client that reaches the account without a socket: for thousands of calls."""
        return self._client("http://stripe.fake", 0, 30)

    async def close(self) -> None:
        """Close the connections of all clients that were given out, in the loop that used them."""
        for http in self._https:
            await http.close_async()

    def fail(self, method: str, path: str, *faults: Fault) -> None:
        """Let the next requests of this method, whose path matches the expression wholly, go wrong."""
        self.wire.fail(method, path, *faults)

    def advance(self, *, days: float = 0, hours: float = 0, seconds: float = 0) -> None:
        """Move the clock on; all that falls due happens, each at its time."""
        with self.wire.lock:
            self.api.books.advance_to(self.now + round(days * 86_400 + hours * 3_600 + seconds))

    def get(self, kind: str, object_id: str) -> Obj:
        """Return an object as the account holds it: "subscription", "checkout.session"."""
        return self.api.books.get(kind, object_id)

    def all(self, kind: str, **fields: Any) -> list[Obj]:
        """Return the objects of a kind with these fields, oldest first."""
        return list(self.api.books.of(kind, **fields))

    def price(self, amount: int, *, interval: str = "month", product: str | None = None, price_id: str = "") -> Obj:
        """Make a recurring price in US cents, and its product."""
        with self.wire.lock:
            call = self.api.call
            product = product or call("POST", "/v1/products", {"name": "Openbell"})["id"]
            params: Obj = {"currency": "usd", "unit_amount": str(amount), "product": product}
            made = call("POST", "/v1/prices", params | {"recurring": {"interval": interval}})
            kept = self.api.books.kinds["price"].pop(made["id"])
            kept["id"] = price_id or kept["id"]
            return self.api.books.add("price", kept)

    def promotion(self, code: str, *, percent_off: int, active: bool = True, customer: str | None = None) -> Obj:
        """Make a code that people may type, for one customer or for all."""
        with self.wire.lock:
            coupon = self.api.call("POST", "/v1/coupons", {"percent_off": str(percent_off), "duration": "once"})
            made: Obj = {
                "id": self.api.books.new_id("promo"),
                "object": "promotion_code",
                "active": active,
                "code": code,
                "created": self.now,
                "customer": customer,
                "expires_at": None,
                "livemode": False,
                "max_redemptions": None,
                "metadata": {},
                "promotion": {"coupon": coupon["id"], "type": "coupon"},
                "restrictions": {"first_time_transaction": False, "minimum_amount": None},
                "times_redeemed": 0,
            }
            return self.api.books.add("promotion_code", made)

    def feature(self, product: str, name: str) -> None:
        """Let a product entitle to something."""
        with self.wire.lock:
            made = self.api.call("POST", "/v1/entitlements/features", {"lookup_key": name, "name": name})
            self.api.call("POST", f"/v1/products/{product}/features", {"entitlement_feature": made["id"]})

    def card(self, behaviour: Behaviour = "pays", *, exp: tuple[int, int] = (12, 2034), last4: str = "4242") -> Obj:
        """Make a card: `pays`, `declines`, `asks` for 3D Secure, or `delays` as a bank debit does."""
        with self.wire.lock:
            return self.api.money.card(behaviour, exp=exp, last4=last4)

    def behave(self, card_id: str, behaviour: Behaviour) -> None:
        """Let a card behave otherwise from now on."""
        self.api.books.hidden[card_id]["behaviour"] = behaviour

    def set_card(self, customer_id: str, card: Obj) -> None:
        """Make this the customer's card, as the portal does."""
        with self.wire.lock:
            self.api.money.attach(card["id"], customer_id)
            params = {"invoice_settings": {"default_payment_method": card["id"]}}
            self.api.call("POST", f"/v1/customers/{customer_id}", params)

    def complete(self, session_id: str, card: Obj | None = None) -> bool:
        """Pay at the checkout; returns whether it worked (a declined card leaves the session open)."""
        with self.wire.lock:
            return self.api.checkout.complete(self.get("checkout.session", session_id), card or self.card())

    def settle(self, session_id: str, *, good: bool) -> None:
        """A debit that was on its way arrives, or does not."""
        with self.wire.lock:
            self.api.checkout.settle(self.get("checkout.session", session_id), good=good)

    def authenticate(self, invoice_id: str) -> None:
        """The customer does what the bank asks, and the invoice is paid."""
        with self.wire.lock:
            self.api.invoices.pay(self.get("invoice", invoice_id), authenticated=True)

    def charge_of(self, invoice_id: str) -> Obj:
        """Return the charge that paid an invoice."""
        intent = self.api.invoices.intent_of(self.get("invoice", invoice_id))
        return self.get("charge", intent["latest_charge"])

    def refund(self, charge_id: str, amount: int | None = None) -> Obj:
        """Refund from the dashboard."""
        with self.wire.lock:
            return self.api.money.refund(self.get("charge", charge_id), amount)

    def fail_refund(self, refund_id: str) -> None:
        """The customer's bank does not take a refund."""
        with self.wire.lock:
            self.api.money.fail_refund(self.get("refund", refund_id))

    def dispute(self, charge_id: str) -> Obj:
        """The customer's bank disputes a charge."""
        with self.wire.lock:
            return self.api.money.dispute(self.get("charge", charge_id))

    def decide(self, dispute_id: str, *, won: bool) -> None:
        """The bank decides a dispute."""
        with self.wire.lock:
            self.api.money.decide(self.get("dispute", dispute_id), won=won)

    def expire_card(self, customer_id: str) -> None:
        """Tell that the customer's card expires at the end of the month."""
        with self.wire.lock:
            card_id = self.get("customer", customer_id)["invoice_settings"]["default_payment_method"]
            card = self.get("payment_method", card_id)["card"]
            shown = {name: card[name] for name in ("brand", "country", "exp_month", "exp_year", "last4", "funding")}
            source = {"id": "card_1Fake" + card_id[-8:], "object": "card", "customer": customer_id, "metadata": {}}
            self.api.books.emit("customer.source.expiring", source | shown)

    def body(self, event: Obj) -> bytes:
        """Return the webhook of an event, as Stripe writes it."""
        return json.dumps(event, indent=2).encode()

    def thin(self, event: Obj) -> bytes:
        """Return the same as a v2 notification: only the object's name."""
        return json.dumps(self.api.thin(event)).encode()

    def sign(self, body: bytes, *, at: int | None = None, secret: str | None = None) -> dict[str, str]:
        """Return the headers of a webhook. `at` is when it was signed: now by the computer's clock, unless given."""
        header = stripe.WebhookSignature.generate_signature_header(body.decode(), secret or self.webhook_secret, at)
        return {"stripe-signature": header, "content-type": "application/json; charset=utf-8"}

    def signed(self, event: Obj, *, at: int | None = None, secret: str | None = None) -> tuple[bytes, dict[str, str]]:
        """Return the webhook of an event and its headers."""
        body = self.body(event)
        return body, self.sign(body, at=at, secret=secret)

    def delivered(self, *event_ids: str) -> None:
        """Note that these webhooks were answered with 2xx."""
        with self.wire.lock:
            for event_id in event_ids:
                self.api.books.undelivered.discard(event_id)
                self.api.books.events[event_id]["pending_webhooks"] = 0

    def __enter__(self) -> Self:
        self.url = self._served.enter_context(serving(self.app, "stripe"))
        return self

    def __exit__(self, *_: object) -> None:
        self._served.close()

    def _client(self, url: str, retries: int, timeout_s: float) -> stripe.StripeClient:
        made = self._clients.get((url, retries, timeout_s))
        if made is None:
            http = _Http(timeout=timeout_s)
            if url != self.url:
                http._client_async = httpx.AsyncClient(transport=httpx.ASGITransport(app=cast("Any", self.app)))
            self._https.append(http)
            made = self._clients[url, retries, timeout_s] = stripe.StripeClient(
                self.key,
                base_addresses={"api": url},
                http_client=http,
                max_network_retries=retries,
                stripe_version=API_VERSION,
            )
        return made


class _Http(stripe.HTTPXClient):
    """Sends forms as httpx wants them: what stripe 16.1 does is deprecated, and warnings are errors here."""

    def _get_request_args_kwargs(self, method: str, url: str, headers: Any, post_data: Any) -> Any:
        args, options = cast("Any", super()._get_request_args_kwargs(method, url, headers, post_data))
        return args, {**options, "data": None, "content": options["data"] or None}
