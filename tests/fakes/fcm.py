"""Firebase Cloud Messaging, HTTP v1, and the token endpoint of its service accounts.

An assertion must be signed by the account's key, name its address, the scope and this endpoint, and end within an
hour. A message needs a bearer token that has not ended (401), has 4,096 bytes of notification and data at most (400),
and goes to a token that is registered (404 UNREGISTERED otherwise). A device shows one notification a tag.
"""

import functools
import json
import secrets
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey

from tests.fakes.posts import Answer, Posts, Request

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
BYTES_MAX = 4_096


@dataclass(frozen=True)
class Key:
    """The account's key pair; making one takes a moment, so all tests share one."""

    private: str
    public: RSAKey

    @classmethod
    @functools.cache
    def shared(cls) -> "Key":
        key = RSAKey.generate_key(2048)
        return cls(key.as_pem(private=True).decode(), key)


def problem(status: int, name: str, code: str | None = None, field: str | None = None) -> Answer:
    """An error in Google's shape, with FCM's own code in its details."""
    details: list[Any] = []
    if code is not None:
        kind = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
        details.append({"@type": kind, "errorCode": code})
    if field is not None:
        kind = "type.googleapis.com/google.rpc.BadRequest"
        details.append({"@type": kind, "fieldViolations": [{"field": field, "description": "Invalid"}]})
    return Answer(status, {"error": {"code": status, "message": name, "status": name, "details": details}})


class FakeFcm(Posts):
    """One project with its devices."""

    def __init__(self) -> None:
        super().__init__()
        self.key = Key.shared()
        self.email = "openbell@project-1.iam.gserviceaccount.com"
        self.project_id = "project-1"
        self.lifetime_s = 3599
        self.granted = 0
        self.shown: dict[str, dict[str, Any]] = defaultdict(dict)
        """What each device shows, by tag."""
        self._devices: set[str] = set()
        self._tokens: dict[str, float] = {}

    @property
    def send_path(self) -> str:
        return f"/v1/projects/{self.project_id}/messages:send"

    def device(self) -> str:
        """Register an app; return its token."""
        token = f"{secrets.token_urlsafe(16)}:{secrets.token_urlsafe(100)}"
        self._devices.add(token)
        return token

    def remove(self, token: str) -> None:
        """Remove the app from its device."""
        self._devices.discard(token)

    def revoke(self) -> None:
        """End all access tokens before their time."""
        self._tokens.clear()

    def account_file(self) -> str:
        """The key file as Google gives it."""
        told = {
            "type": "service_account",
            "project_id": self.project_id,
            "private_key": self.key.private,
            "client_email": self.email,
            "token_uri": f"{self.base}/token",
        }
        return json.dumps(told)

    def take(self, request: Request) -> Answer:
        if request.path == "/token":
            return self._grant(request)
        if request.path != self.send_path:
            return problem(404, "NOT_FOUND")
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._tokens.get(token, 0.0) <= time.time():
            return problem(401, "UNAUTHENTICATED")
        return self._send(json.loads(request.body)["message"])

    def _send(self, message: Any) -> Answer:
        size = len(json.dumps(message["notification"]).encode()) + len(json.dumps(message["data"]).encode())
        if size > BYTES_MAX or not all(isinstance(value, str) for value in message["data"].values()):
            return problem(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT")
        if ":" not in message["token"]:
            return problem(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "message.token")
        if message["token"] not in self._devices:
            return problem(404, "NOT_FOUND", "UNREGISTERED")
        tag = message["android"]["notification"]["tag"]
        assert tag == message["android"]["collapse_key"] == message["apns"]["headers"]["apns-collapse-id"]
        self.shown[message["token"]][tag] = message
        return Answer(200, {"name": f"projects/{self.project_id}/messages/{secrets.token_hex(8)}"})

    def _grant(self, request: Request) -> Answer:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        try:
            claims = jwt.decode(form["assertion"], self.key.public, algorithms=["RS256"]).claims
        except (JoseError, ValueError, KeyError):
            return Answer(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
        wanted = {"iss": self.email, "scope": SCOPE, "aud": f"{self.base}/token"}
        now = time.time()
        if {name: claims.get(name) for name in wanted} != wanted or not now < claims["exp"] <= now + 3660:
            return Answer(400, {"error": "invalid_grant", "error_description": "Invalid JWT."})
        if form.get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer":
            return Answer(400, {"error": "unsupported_grant_type"})
        self.granted += 1
        token = f"ya29.{secrets.token_urlsafe(32)}"
        self._tokens[token] = now + self.lifetime_s
        return Answer(200, {"access_token": token, "expires_in": self.lifetime_s, "token_type": "Bearer"})
