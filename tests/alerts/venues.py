"""The destinations that the suite of senders is held against: each a stand-in and the sender that talks to it."""

import json
import secrets
from dataclasses import replace
from typing import Any, Final, Protocol
from uuid import uuid4

from services.alerts.adapters.apprise import AppriseSender
from services.alerts.adapters.discord import Discord
from services.alerts.adapters.fcm import Fcm, ServiceAccount
from services.alerts.adapters.smtp import Smtp, SmtpServer
from services.alerts.adapters.webhook import WebhookSender
from services.alerts.adapters.webpush import Vapid, WebPush
from services.alerts.domain.targets import Webhook, subscription_of
from services.alerts.domain.text import Message
from services.alerts.ports import Sender
from shared.outward import Outward
from tests.alerts.conftest import NOW
from tests.alerts.mail_venues import ResendVenue, SendGridVenue
from tests.fakes import posts
from tests.fakes.apprise_target import FakeAppriseTarget
from tests.fakes.discord import Answer, FakeDiscord
from tests.fakes.fcm import FakeFcm, problem
from tests.fakes.mail_apis import FakeResend, FakeSendGrid
from tests.fakes.smtp import SILENCE, FakeSmtp
from tests.fakes.webhook import FakeWebhook
from tests.fakes.webpush import FakePushService


def message(target: str, **changed: object) -> Message:
    return replace(
        Message(
            delivery_id=uuid4(),
            target=target,
            title="AAPL: 2 unusual contracts, score 71",
            lines=("AAPL 2025-06-20 200 call, score 71", "<b>and</b> 1 more @everyone"),
            notes=("Rule watchlist.", "Session 2025-06-02."),
            simulated=False,
            at=NOW,
        ),
        **changed,
    )


class Venue(Protocol):
    """A destination that the suite can make behave."""

    sender: Sender
    target: str
    secret: str
    """The part of the target that nobody may read in a log."""

    def fail_for_now(self) -> None: ...
    def ask_to_wait(self) -> None: ...
    def refuse_message(self) -> None: ...
    def disappear(self) -> None: ...
    def fall_silent(self) -> None: ...
    def received(self) -> list[str]: ...
    def unreachable(self) -> tuple[Sender, str]: ...


class DiscordVenue:
    def __init__(self, server: FakeDiscord) -> None:
        self.server = server
        self.sender: Sender = Discord(timeout_s=0.5)
        self.target = server.webhook()
        self.secret = self.target.rpartition("/")[2]

    def fail_for_now(self) -> None:
        self.server.answer(self.target, Answer(503))

    def ask_to_wait(self) -> None:
        self.server.answer(self.target, Answer(429, {"retry_after": 12.0}))

    def refuse_message(self) -> None:
        self.server.answer(self.target, Answer(400, {"message": "Invalid Form Body", "code": 50035}))

    def disappear(self) -> None:
        self.server.remove(self.target)

    def fall_silent(self) -> None:
        self.server.answer(self.target, Answer(hang=True))

    def received(self) -> list[str]:
        return [json.dumps(post.payload) for post in self.server.posts]

    def unreachable(self) -> tuple[Sender, str]:
        return self.sender, "http://127.0.0.1:9/api/webhooks/1/s3cret-s3cret-s3cret"


class SmtpVenue:
    def __init__(self, server: FakeSmtp) -> None:
        self.server = server
        self.address = SmtpServer(
            server.host, server.port, "Openbell <alerts@openbell.invalid>", starttls=False, timeout_s=0.5
        )
        self.sender: Sender = Smtp(self.address)
        self.target = self.secret = "reader@example.org"

    def fail_for_now(self) -> None:
        self.server.answer_data("451 try later")

    def ask_to_wait(self) -> None:
        raise NotImplementedError

    def refuse_message(self) -> None:
        self.server.answer_data("554 looks like spam")

    def disappear(self) -> None:
        self.server.refuse(self.target, "550 no such user")

    def fall_silent(self) -> None:
        self.server.answer_data(SILENCE)

    def received(self) -> list[str]:
        return [str(mail.message) for mail in self.server.mails]

    def unreachable(self) -> tuple[Sender, str]:
        return Smtp(replace(self.address, port=9)), self.target


class WebhookVenue:
    def __init__(self, server: FakeWebhook) -> None:
        self.server = server
        self.outward = Outward(allowed=server.base, timeout_s=0.5)
        self.sender: Sender = WebhookSender(self.outward)
        url, secret = server.endpoint()
        self.path = url.removeprefix(server.base)
        self.target = Webhook(url, (secret,)).text
        self.secret = self.path.rpartition("/")[2]

    def fail_for_now(self) -> None:
        self.server.answer(self.path, posts.Answer(503))

    def ask_to_wait(self) -> None:
        self.server.answer(self.path, posts.Answer(429, headers={"retry-after": "12"}))

    def refuse_message(self) -> None:
        self.server.answer(self.path, posts.Answer(422))

    def disappear(self) -> None:
        self.server.remove(self.path)

    def fall_silent(self) -> None:
        self.server.answer(self.path, posts.Answer(hang=True))

    def received(self) -> list[str]:
        return [json.dumps(taken) for taken in self.server.taken.values()]

    def unreachable(self) -> tuple[Sender, str]:
        nobody = Outward(allowed="http://127.0.0.1:9")
        return WebhookSender(nobody), Webhook("http://127.0.0.1:9/s3cret", ("whsec_c2VjcmV0",)).text


VAPID = Vapid(secrets.token_urlsafe(32), "mailto:alerts@openbell.invalid")


class WebPushVenue:
    def __init__(self, server: FakePushService) -> None:
        self.server = server
        self.outward = Outward(allowed=server.base, timeout_s=0.5)
        self.sender: Sender = WebPush(VAPID, self.outward)
        self.target, self.browser = server.subscribe(VAPID.public_key)
        self.path = subscription_of(self.target).endpoint.removeprefix(server.base)
        self.secret = self.path.rpartition("/")[2]

    def fail_for_now(self) -> None:
        self.server.answer(self.path, posts.Answer(503))

    def ask_to_wait(self) -> None:
        self.server.answer(self.path, posts.Answer(429, headers={"retry-after": "12"}))

    def refuse_message(self) -> None:
        self.server.answer(self.path, posts.Answer(413))

    def disappear(self) -> None:
        self.server.remove(self.path)

    def fall_silent(self) -> None:
        self.server.answer(self.path, posts.Answer(hang=True))

    def received(self) -> list[str]:
        return [json.dumps(shown) for shown in self.browser.shown.values()]

    def unreachable(self) -> tuple[Sender, str]:
        told = json.loads(self.target) | {"endpoint": "http://127.0.0.1:9/s3cret"}
        return WebPush(VAPID, Outward(allowed="http://127.0.0.1:9")), json.dumps(told)


class FcmVenue:
    def __init__(self, server: FakeFcm) -> None:
        self.server = server
        self.account = account_of(server)
        self.sender: Sender = Fcm(self.account, base=server.base, timeout_s=0.5)
        self.target = self.secret = server.device()

    def fail_for_now(self) -> None:
        self.server.answer(self.server.send_path, problem(503, "UNAVAILABLE", "UNAVAILABLE"))

    def ask_to_wait(self) -> None:
        refused = problem(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED")
        self.server.answer(self.server.send_path, replace(refused, headers={"retry-after": "12"}))

    def refuse_message(self) -> None:
        self.server.answer(self.server.send_path, problem(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"))

    def disappear(self) -> None:
        self.server.remove(self.target)

    def fall_silent(self) -> None:
        self.server.answer(self.server.send_path, posts.Answer(hang=True))

    def received(self) -> list[str]:
        return [json.dumps(shown["notification"]) for shown in self.server.shown[self.target].values()]

    def unreachable(self) -> tuple[Sender, str]:
        return Fcm(replace(self.account, token_uri="http://127.0.0.1:9/token")), self.target


def account_of(server: FakeFcm) -> ServiceAccount:
    told = json.loads(server.account_file())
    return ServiceAccount(told["project_id"], told["client_email"], told["private_key"], told["token_uri"])


class AppriseVenue:
    def __init__(self, server: FakeAppriseTarget) -> None:
        self.server = server
        place = server.base.removeprefix("http://")
        self.sender: Sender = AppriseSender([place], timeout_s=2.0)
        self.target = f"json://{place}{server.path}"
        self.secret = server.path.strip("/").rpartition("/")[2]

    def fail_for_now(self) -> None:
        self.server.answer(self.server.path, posts.Answer(503))

    def ask_to_wait(self) -> None:
        self.server.answer(self.server.path, posts.Answer(429))

    def refuse_message(self) -> None:
        self.server.answer(self.server.path, posts.Answer(422))

    def disappear(self) -> None:
        self.server.answer(self.server.path, posts.Answer(410))

    def fall_silent(self) -> None:
        self.server.answer(self.server.path, posts.Answer(hang=True))

    def received(self) -> list[str]:
        return self.server.taken

    def unreachable(self) -> tuple[Sender, str]:
        return AppriseSender(["127.0.0.1:9"]), "json://127.0.0.1:9/s3cret"


_NO_REASON: Final = "Apprise says only that it failed: every failure is an unknown outcome"

VENUES: Final[dict[str, tuple[Any, Any]]] = {
    "discord": (FakeDiscord, DiscordVenue),
    "smtp": (FakeSmtp, SmtpVenue),
    "webhook": (FakeWebhook, WebhookVenue),
    "sendgrid": (FakeSendGrid, SendGridVenue),
    "resend": (FakeResend, ResendVenue),
    "webpush": (FakePushService, WebPushVenue),
    "fcm": (FakeFcm, FcmVenue),
    "apprise": (FakeAppriseTarget, AppriseVenue),
}
"""Each stand-in, and the venue over it."""

LACKS: Final[dict[str, dict[int, str]]] = {
    "apprise": dict.fromkeys((2, 3, 4, 6, 9), _NO_REASON),
    "smtp": {9: "SMTP has no way to say how long to wait"},
    "resend": {4: "Resend takes mail for any address and tells by webhook that it bounced"},
}
"""The numbered cases of test_senders that a channel cannot show, and why."""
