"""E-mail through SendGrid's Mail Send (v3).

SendGrid knows no idempotency key, so a mail whose outcome is unknown is sent again with the same Message-ID and a line
that says so: a missed alert is worse than a doubled one. The delivery's id travels as a custom argument, which
SendGrid repeats in every event of its webhook.

What would surprise you: mail for an address that SendGrid suppresses is taken with 202 and dropped afterwards; its
webhook tells.
"""

from email.utils import parseaddr
from typing import Any, Final

import httpx

from services.alerts.adapters.answers import json_of
from services.alerts.adapters.mail import Letter, letter
from services.alerts.adapters.mail_api import MailApi, base64_of
from services.alerts.domain.text import IMAGE_NAME, Message
from services.alerts.ports import ChannelGone, Sent

BASE: Final = "https://api.sendgrid.com"

_BAD_REQUEST: Final = 400
_RECIPIENT: Final = "personalizations.0.to"


class SendGrid:
    """Sends mail as `sender`, an address of a domain that SendGrid has verified."""

    def __init__(
        self, key: str, sender: str, *, base: str = BASE, connections: int = 4, timeout_s: float = 20.0
    ) -> None:
        self._api = MailApi("SendGrid", base, key, connections=connections, timeout_s=timeout_s)
        self._sender = sender

    async def send(self, message: Message) -> Sent:
        """Hand the mail in; see services.alerts.ports for how it may end."""
        body = payload(letter(message, self._sender), str(message.delivery_id))
        answer = await self._api.post("/v3/mail/send", body, {})
        if answer.is_success:
            return Sent(answer.headers.get("x-message-id", ""))
        fields = _fields(answer)
        if answer.status_code == _BAD_REQUEST and fields and fields[0].startswith(_RECIPIENT):
            raise ChannelGone("SendGrid takes no mail for this address")
        raise self._api.refusal(answer, code=", ".join(fields))

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()


def payload(mail: Letter, delivery_id: str) -> dict[str, Any]:
    """Return Mail Send's JSON."""
    name, address = parseaddr(mail.sender)
    body: dict[str, Any] = {
        "personalizations": [{"to": [{"email": mail.to}]}],
        "from": {"email": address} | ({"name": name} if name else {}),
        "subject": mail.subject,
        "content": [{"type": "text/plain", "value": mail.text}, {"type": "text/html", "value": mail.html}],
        "headers": dict(mail.headers),
        "custom_args": {"delivery_id": delivery_id},
    }
    if mail.image is not None:
        body["attachments"] = [
            {
                "content": base64_of(mail.image),
                "type": "image/png",
                "filename": IMAGE_NAME,
                "disposition": "inline",
                "content_id": IMAGE_NAME,
            }
        ]
    return body


def _fields(answer: httpx.Response) -> list[str]:
    """Return which fields of the request are refused: names of ours, never their values."""
    errors: list[dict[str, Any]] = json_of(answer).get("errors") or []
    return [str(error["field"])[:80] for error in errors if error.get("field")]
