"""E-mail through Resend.

The delivery's id is the idempotency key, which Resend remembers for 24 hours, longer than a delivery is tried: an
attempt that is made again sends nothing twice. It also travels as a tag, which Resend repeats in its webhooks.

What would surprise you: an attempt whose words differ from the first one's (an alert tells its latest) is answered with
409 `invalid_idempotent_request`. That says that the first one was taken, so the delivery is done.
"""

from typing import Any, Final

import httpx

from services.alerts.adapters.answers import json_of
from services.alerts.adapters.mail import Letter, letter
from services.alerts.adapters.mail_api import MailApi, base64_of
from services.alerts.domain.text import IMAGE_NAME, Message
from services.alerts.ports import Sent
from shared.errors import Transient
from shared.work import Busy

BASE: Final = "https://api.resend.com"

_CONFLICT: Final = 409
_TAKEN_BEFORE: Final = "invalid_idempotent_request"
_QUOTAS: Final = {"daily_quota_exceeded": 3_600.0, "monthly_quota_exceeded": 6 * 3_600.0}


class Resend:
    """Sends mail as `sender`, an address of a domain that Resend has verified."""

    def __init__(
        self, key: str, sender: str, *, base: str = BASE, connections: int = 4, timeout_s: float = 20.0
    ) -> None:
        self._api = MailApi("Resend", base, key, connections=connections, timeout_s=timeout_s)
        self._sender = sender

    async def send(self, message: Message) -> Sent:
        """Hand the mail in; see services.alerts.ports for how it may end."""
        delivery_id = str(message.delivery_id)
        body = payload(letter(message, self._sender), delivery_id)
        answer = await self._api.post("/emails", body, {"idempotency-key": f"openbell/{delivery_id}"})
        told = json_of(answer)
        if answer.is_success:
            return Sent(str(told.get("id", "")))
        refused = self._refused(answer, str(told.get("name", ""))[:80])
        if refused is None:
            return Sent("")
        raise refused

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    def _refused(self, answer: httpx.Response, name: str) -> Exception | None:
        """Return what a refusal means; None for one that says that the mail was taken before."""
        if answer.status_code == _CONFLICT:
            return None if name == _TAKEN_BEFORE else Transient("Resend is still taking this mail")
        if name in _QUOTAS:
            return Busy("Resend's quota is used up", retry_after_s=_QUOTAS[name], everyone=True)
        return self._api.refusal(answer, code=name)


def payload(mail: Letter, delivery_id: str) -> dict[str, Any]:
    """Return the JSON of Resend's POST /emails."""
    body: dict[str, Any] = {
        "from": mail.sender,
        "to": [mail.to],
        "subject": mail.subject,
        "text": mail.text,
        "html": mail.html,
        "headers": {name: value for name, value in mail.headers.items() if name != "Date"},
        "tags": [{"name": "delivery_id", "value": delivery_id}],
    }
    if mail.image is not None:
        image = {"content": base64_of(mail.image), "filename": IMAGE_NAME, "content_type": "image/png"}
        body["attachments"] = [image | {"content_id": IMAGE_NAME}]
    return body
