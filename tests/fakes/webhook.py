"""A receiver of signed webhooks that verifies as Standard Webhooks says: any signature that fits, a fresh timestamp.

What it has taken once it takes again without keeping it, by its id.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any

from tests.fakes.posts import Answer, Posts, Request

TOLERANCE_S = 300.0


class FakeWebhook(Posts):
    """Endpoints, each with one secret."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, Any] = {}
        """What was accepted, by webhook-id."""
        self.now = time.time
        self._secrets: dict[str, str] = {}

    def endpoint(self) -> tuple[str, str]:
        """Make an endpoint; return its URL and its secret."""
        path = f"/in/{secrets.token_urlsafe(24)}"
        self._secrets[path] = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        return self.base + path, self._secrets[path]

    def remove(self, path: str) -> None:
        """Delete an endpoint for good."""
        del self._secrets[path]

    def take(self, request: Request) -> Answer:
        secret = self._secrets.get(request.path)
        if secret is None:
            return Answer(410)
        if not self._fits(request, secret):
            return Answer(401)
        self.taken.setdefault(request.headers["webhook-id"], json.loads(request.body))
        return Answer(204)

    def _fits(self, request: Request, secret: str) -> bool:
        at = request.headers["webhook-timestamp"]
        if abs(float(at) - self.now()) > TOLERANCE_S:
            return False
        signed = f"{request.headers['webhook-id']}.{at}.".encode() + request.body
        key = base64.b64decode(secret.removeprefix("whsec_"))
        good = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        return good in request.headers["webhook-signature"].split(" ")
