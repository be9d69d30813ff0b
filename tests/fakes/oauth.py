"""A venue's OAuth server: consents, codes with PKCE, tokens that rotate, and faults on demand.

A refresh token is good once, as with venues that rotate; the use of an old one is counted and refused.
"""

import asyncio
import base64
import hashlib
import json
import threading
from typing import Any, Literal
from urllib.parse import parse_qs, parse_qsl, urlsplit

Fault = Literal["busy", "broken", "garbage", "client", "hang"]


class FakeOAuth:
    """The ASGI app of the token endpoint, and the user's browser at the venue."""

    def __init__(self) -> None:
        self.client = ("openbell", "the-client-secret")
        self.lifetime_s: int | None = 900
        self.rotates = True
        self.faults: list[Fault] = []
        self.grants: list[dict[str, str]] = []
        self.answered = 0
        self.reused = 0
        self.revoked = False
        self.hold = threading.Event()  # answers wait for it
        self.hold.set()
        self._codes: dict[str, dict[str, str]] = {}
        self._refresh: str | None = None
        self._count = 0

    def consent(self, address: str) -> dict[str, str]:
        """Do what the user does at the venue; return the parameters that come back."""
        asked = dict(parse_qsl(urlsplit(address).query))
        assert asked["response_type"] == "code"
        assert asked["client_id"] == self.client[0]
        code = f"code-{len(self._codes) + 1}"
        self._codes[code] = asked
        return {"state": asked["state"], "code": code}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        form = dict(scope["headers"])[b"content-type"].startswith(b"application/x-www-form-urlencoded")
        grant = {k: v[0] for k, v in parse_qs(body.decode()).items()} if form else json.loads(body)
        self.grants.append(grant)
        status, answer = await self._answer(grant)
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}
        )
        await send({"type": "http.response.body", "body": answer if isinstance(answer, bytes) else _json(answer)})
        self.answered += 1

    async def _answer(self, grant: dict[str, str]) -> tuple[int, Any]:
        await asyncio.to_thread(self.hold.wait, 30)
        fault = self.faults.pop(0) if self.faults else None
        if fault == "hang":
            await asyncio.sleep(60)
        if fault is not None:
            return {
                "busy": (429, {"error": "slow_down"}),
                "broken": (503, {"error": "sorry", "echo": grant}),
                "garbage": (200, b"<html>" + _json(grant)),
                "client": (401, {"error": "invalid_client", "echo": grant}),
                "hang": (503, {}),
            }[fault]
        if (grant["client_id"], grant["client_secret"]) != self.client:
            return 401, {"error": "invalid_client"}
        good = self._code(grant) if grant["grant_type"] == "authorization_code" else self._refreshes(grant)
        return self._tokens() if good else (400, {"error": "invalid_grant", "error_description": _json(grant).decode()})

    def _code(self, grant: dict[str, str]) -> bool:
        asked = self._codes.pop(grant["code"], None)
        if asked is None or asked["redirect_uri"] != grant["redirect_uri"]:
            return False
        if "code_challenge" not in asked:
            return "code_verifier" not in grant
        digest = hashlib.sha256(grant.get("code_verifier", "").encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == asked["code_challenge"]

    def _refreshes(self, grant: dict[str, str]) -> bool:
        if grant["refresh_token"] != self._refresh:
            self.reused += 1
            return False
        return not self.revoked

    def _tokens(self) -> tuple[int, Any]:
        self._count += 1
        told: dict[str, Any] = {"access_token": f"access-secret-{self._count}", "token_type": "Bearer"}
        if self.lifetime_s is not None:
            told["expires_in"] = self.lifetime_s
        if self.rotates or self._refresh is None:
            self._refresh = f"refresh-secret-{self._count}"
            told["refresh_token"] = self._refresh
        return 200, told


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
