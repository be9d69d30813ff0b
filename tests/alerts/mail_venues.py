"""Providers of mail as the conformance suite of senders sees them."""

import json

from services.alerts.adapters.resend import Resend
from services.alerts.adapters.sendgrid import SendGrid
from services.alerts.ports import Sender
from tests.fakes.mail_apis import FakeResend, FakeSendGrid, Refuse

FROM = "Openbell <alerts@openbell.invalid>"


class SendGridVenue:
    def __init__(self, server: FakeSendGrid) -> None:
        self.server = server
        self.sender: Sender = SendGrid(server.key, FROM, base=server.base, timeout_s=0.5)
        self.target = self.secret = "reader@example.org"

    def fail_for_now(self) -> None:
        self.server.answer(Refuse(503))

    def ask_to_wait(self) -> None:
        self.server.answer(Refuse(429, headers={"retry-after": "12"}))

    def refuse_message(self) -> None:
        self.server.answer(Refuse(400, {"errors": [{"message": "no", "field": "content.0.value", "help": None}]}))

    def disappear(self) -> None:
        field = "personalizations.0.to.0.email"
        self.server.answer(Refuse(400, {"errors": [{"message": "no", "field": field, "help": None}]}))

    def fall_silent(self) -> None:
        self.server.answer(Refuse(hang=True))

    def received(self) -> list[str]:
        return [json.dumps(mail) for mail in self.server.mails]

    def unreachable(self) -> tuple[Sender, str]:
        return SendGrid("key", FROM, base="http://127.0.0.1:9"), self.target


class ResendVenue:
    def __init__(self, server: FakeResend) -> None:
        self.server = server
        self.sender: Sender = Resend(server.key, FROM, base=server.base, timeout_s=0.5)
        self.target = self.secret = "reader@example.org"

    def fail_for_now(self) -> None:
        self.server.answer(Refuse(500, {"statusCode": 500, "name": "application_error", "message": "oops"}))

    def ask_to_wait(self) -> None:
        self.server.answer(Refuse(429, headers={"retry-after": "12"}))

    def refuse_message(self) -> None:
        self.server.answer(Refuse(422, {"statusCode": 422, "name": "validation_error", "message": "no"}))

    def disappear(self) -> None:
        self.refuse_message()  # the most it can show: its webhook tells of addresses

    def fall_silent(self) -> None:
        self.server.answer(Refuse(hang=True))

    def received(self) -> list[str]:
        return [json.dumps(mail) for mail in self.server.mails]

    def unreachable(self) -> tuple[Sender, str]:
        return Resend("key", FROM, base="http://127.0.0.1:9"), self.target
