"""A push service with its browsers, in the manner of Mozilla's autopush.

It refuses what RFC 8030 and RFC 8292 do not allow: a missing TTL (400), a Topic that is no base64url of 32 characters
(400), more than 4,096 bytes (413), a VAPID token that is not signed by the key it names, is for another origin, is over
or lives longer than a day (401), or a key other than the one that the subscription was made with (403). Each browser
decrypts what it gets with its own keys (RFC 8291), and shows one message a Topic.
"""

import json
import os
import re
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Any

import http_ece
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from tests.fakes.posts import Answer, Posts, Request

BODY_MAX = 4_096
TTL_MAX_S = 30 * 86_400
DAY_S = 86_400


def packed(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def unpacked(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass
class Browser:
    """A browser's side of a subscription."""

    application_key: str
    private: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    auth: bytes = field(default_factory=lambda: os.urandom(16))
    shown: dict[str, Any] = field(default_factory=dict)
    """What it got, by Topic."""

    def keys(self) -> dict[str, str]:
        point = self.private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return {"p256dh": packed(point), "auth": packed(self.auth)}

    def get(self, topic: str, body: bytes) -> None:
        text = http_ece.decrypt(body, private_key=self.private, auth_secret=self.auth, version="aes128gcm")
        self.shown[topic] = json.loads(text)


class FakePushService(Posts):
    """Endpoints, one for each subscription."""

    def __init__(self) -> None:
        super().__init__()
        self.browsers: dict[str, Browser] = {}

    def subscribe(self, application_key: str) -> tuple[str, Browser]:
        """Subscribe a browser; return JSON.stringify(subscription), and the browser."""
        path = f"/wpush/v2/{secrets.token_urlsafe(40)}"
        browser = self.browsers[path] = Browser(application_key)
        told = {"endpoint": self.base + path, "expirationTime": None, "keys": browser.keys()}
        return json.dumps(told), browser

    def remove(self, path: str) -> None:
        """End a subscription."""
        del self.browsers[path]

    def take(self, request: Request) -> Answer:
        browser = self.browsers.get(request.path)
        if browser is None:
            return Answer(410, {"code": 410, "errno": 106, "error": "Gone"})
        told = request.headers
        refused = self._form(request) or self._vapid(told.get("authorization", ""), browser)
        if refused is not None:
            return refused
        browser.get(told.get("topic", secrets.token_hex(4)), request.body)
        return Answer(201, None, {"location": f"{self.base}/m/{secrets.token_urlsafe(20)}", "ttl": told["ttl"]})

    def _form(self, request: Request) -> Answer | None:
        told = request.headers
        ttl = told.get("ttl", "")
        faults = {
            (413, 104): len(request.body) > BODY_MAX,
            (400, 111): not ttl.isdigit() or int(ttl) > TTL_MAX_S,
            (400, 113): not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", told.get("topic", "x")),
            (400, 110): told.get("urgency", "normal") not in {"very-low", "low", "normal", "high"}
            or told.get("content-encoding") != "aes128gcm",
        }
        found = next((answer for answer, wrong in faults.items() if wrong), None)
        return None if found is None else Answer(found[0], {"code": found[0], "errno": found[1]})

    def _vapid(self, authorization: str, browser: Browser) -> Answer | None:
        found = re.fullmatch(r"vapid t=([^,\s]+), ?k=([^,\s]+)", authorization)
        if found is None:
            return Answer(401, {"code": 401, "errno": 109, "error": "No VAPID"})
        token, key = found.groups()
        if key != browser.application_key:
            return Answer(403, {"code": 403, "errno": 109, "error": "Key mismatch"})
        point = unpacked(key)
        public = ECKey.import_key({"kty": "EC", "crv": "P-256", "x": packed(point[1:33]), "y": packed(point[33:])})
        try:
            claims = jwt.decode(token, public, algorithms=["ES256"]).claims
        except (JoseError, ValueError):
            return Answer(401, {"code": 401, "errno": 109, "error": "Bad signature"})
        left_s = claims.get("exp", 0) - time.time()
        good = claims.get("aud") == self.base and 0 < left_s <= DAY_S
        if not good or not str(claims.get("sub")).startswith(("mailto:", "https:")):
            return Answer(401, {"code": 401, "errno": 109, "error": "Bad claims"})
        return None
