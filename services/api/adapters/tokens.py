"""JWTs of somebody else (RFC 7519): one issuer, by a shared secret (HS256) or by its published keys (JWKS, RFC 7517).

What would surprise you: the algorithm is taken from our settings, not from the token. A secret verifies HS256 alone and
published keys verify asymmetric algorithms alone, so a public key can never be used as a secret.
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OctKey

from services.api.ports import Subject
from shared.clock import Clock
from shared.errors import Transient, Unauthenticated
from shared.signing import claims_by

SKEW_S: Final = 30
REFRESH_S: Final = 300.0
RETRY_S: Final = 30.0
REMEMBERED: Final = 20_000
ASYMMETRIC: Final = ("RS256", "ES256", "EdDSA", "PS256")


class PublishedKeys:
    """An issuer's keys, fetched when needed and again when a token names one that is not among them."""

    def __init__(self, client: httpx.AsyncClient, url: str, clock: Clock) -> None:
        self._client = client
        self._url = url
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    async def get(self, kid: str | None) -> KeySet:
        """Return the keys; raises Transient when there are none to be had."""
        async with self._lock:
            now = self._clock().timestamp()
            known = self._keys is not None and any(key.kid == kid for key in self._keys.keys)
            wanted = now - self._fetched_at > REFRESH_S or not known
            if wanted and now - self._tried_at > (RETRY_S if self._keys else 1.0):
                self._tried_at = now
                await self._fetch(now)
            if self._keys is None:
                raise Transient("the token issuer's keys cannot be fetched", retry_after_s=RETRY_S)
            return self._keys

    async def _fetch(self, now: float) -> None:
        try:
            answer = await self._client.get(self._url, timeout=5)
            answer.raise_for_status()
            published = KeySet.import_key_set(answer.json())
        except (httpx.HTTPError, JoseError, ValueError, KeyError, TypeError):
            return  # what we have stays good
        # a symmetric key has no place among published ones; whoever published it must not make it a secret here
        published.keys = [key for key in published.keys if not isinstance(key, OctKey)]
        self._keys = published
        self._fetched_at = now


class IssuedTokens:
    """Verifies tokens of one issuer. A good one is remembered by its hash until it expires."""

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        secrets: Sequence[str] = (),
        published: PublishedKeys | None,
        clock: Clock,
    ) -> None:
        self._issuer = issuer
        self._audience = audience
        self._secrets = [OctKey.import_key(secret) for secret in secrets]
        self._published = published
        self._clock = clock
        self._known: dict[bytes, Subject] = {}

    async def verify(self, token: str) -> Subject:
        """Return whom the token speaks of; raises Unauthenticated."""
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None and self._clock().timestamp() < known.expires:
            return known
        subject = self._subject(await self._claims(token))
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[digest] = subject
        return subject

    async def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            header = _header(token)
            algorithm = header.get("alg")
            if algorithm == "HS256" and self._secrets:
                return claims_by(token, self._secrets)
            if algorithm in ASYMMETRIC and self._published is not None:
                keys = await self._published.get(header.get("kid"))
                return jwt.decode(token, keys, algorithms=list(ASYMMETRIC)).claims
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise Unauthenticated("this token is not valid") from error
        raise Unauthenticated("this token is not signed in a way that is accepted here")

    def _subject(self, claims: Mapping[str, Any]) -> Subject:
        now = self._clock().timestamp()
        expires, not_before = claims.get("exp"), claims.get("nbf", 0)
        audience = claims.get("aud")
        audiences = cast("list[Any]", audience) if isinstance(audience, list) else [audience]
        subject = claims.get("sub")
        if claims.get("iss") != self._issuer or self._audience not in audiences:
            raise Unauthenticated("this token is for somebody else")
        if not isinstance(expires, int | float) or not isinstance(not_before, int | float):
            raise Unauthenticated("this token does not say how long it holds")
        if not not_before - SKEW_S <= now < expires:
            raise Unauthenticated("this token has expired or does not hold yet")
        if not isinstance(subject, str) or not subject or "\x00" in subject or len(subject) > 255:  # noqa: PLR2004 - OIDC
            raise Unauthenticated("this token does not say who calls")
        return Subject(subject, float(expires))


def _header(token: str) -> Mapping[str, Any]:
    first = token.split(".", 1)[0]
    header: Any = json.loads(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)))
    if not isinstance(header, dict):
        raise TypeError("the header of a token is an object")
    return cast("dict[str, Any]", header)
