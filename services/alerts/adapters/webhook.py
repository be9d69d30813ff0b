"""Signed webhooks, in the form of Standard Webhooks: `webhook-id`, `webhook-timestamp`, `webhook-signature`.

The signature is HMAC-SHA256 over "id.timestamp.body", one for each of the target's secrets. The id is the
delivery's and stays when it is tried again, so a receiver that keeps ids takes each once: an unknown outcome is
sent again.

What would surprise you: 410 alone means that the webhook is gone. A redirect is refused, for nobody checked where it
leads.
"""

import base64
import hashlib
import hmac
import json
import secrets
from typing import Any, Final

from services.alerts.domain.targets import Webhook, webhook_of
from services.alerts.domain.text import Message
from services.alerts.ports import ChannelGone, Sent
from shared.clock import Clock, utc_now
from shared.errors import Permanent, Transient
from shared.external import calling
from shared.outward import Answer, Outward
from shared.work import Busy

_PREFIX: Final = "whsec_"

_OK: Final = range(200, 300)
_GONE: Final = 410
_WAIT: Final = 429
_PASSING: Final = frozenset({408, 425})
_THEIR_FAULT: Final = 500


class WebhookSender:
    """Posts messages as JSON and signs them."""

    def __init__(self, outward: Outward, clock: Clock = utc_now) -> None:
        self._outward = outward
        self._clock = clock

    async def send(self, message: Message) -> Sent:
        """Post the message; see services.alerts.ports for how it may end."""
        webhook = webhook_of(message.target)
        body = json.dumps(payload(message)).encode()
        headers = {"content-type": "application/json", **self._signed(webhook, str(message.delivery_id), body)}
        with calling("webhook") as call:
            answer = await self._outward.post(webhook.url, headers, body)
            call.status = answer.status
        if answer.status in _OK:
            return Sent("")
        raise _refusal(answer)

    async def check(self, target: str) -> None:
        """Raise Invalid for a webhook whose host may not be called."""
        await self._outward.check(webhook_of(target).url)

    async def close(self) -> None:
        """Close the connections; another send opens new ones."""
        await self._outward.close()

    def _signed(self, webhook: Webhook, delivery_id: str, body: bytes) -> dict[str, str]:
        at = str(int(self._clock().timestamp()))
        signatures = [f"v1,{signature(secret, delivery_id, at, body)}" for secret in webhook.secrets]
        return {"webhook-id": delivery_id, "webhook-timestamp": at, "webhook-signature": " ".join(signatures)}


def new_secret() -> str:
    """Return a secret to sign with: 32 random bytes."""
    return f"{_PREFIX}{base64.b64encode(secrets.token_bytes(32)).decode()}"


def signature(secret: str, delivery_id: str, at: str, body: bytes) -> str:
    """Return the base64 signature of a body that was sent at a Unix time."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    return base64.b64encode(
        hmac.digest(key, b".".join((delivery_id.encode(), at.encode(), body)), hashlib.sha256)
    ).decode()


def payload(message: Message) -> dict[str, Any]:
    """Return what a receiver gets."""
    return {
        "id": str(message.delivery_id),
        "title": message.title,
        "lines": list(message.lines),
        "notes": list(message.notes),
        "simulated": message.simulated,
        "at": message.at.isoformat(),
    }


def _refusal(answer: Answer) -> Exception:
    status = answer.status
    if status == _GONE:
        return ChannelGone("the webhook answered 410: it is gone")
    if status == _WAIT:
        return Busy("the webhook asks to wait", retry_after_s=answer.wait_s or 5.0)
    if status >= _THEIR_FAULT or status in _PASSING:
        return Transient(f"the webhook answered {status}", retry_after_s=answer.wait_s)
    return Permanent(f"the webhook refused the message: {status}")
