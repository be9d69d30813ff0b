"""Keys that sign our own tokens (HS256), and how one is changed while tokens of the one before are still about.

A setting of such keys holds them with commas between: the first signs, all are accepted. docs/secrets.md has the steps.
"""

import contextlib
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import BadSignatureError
from joserfc.jwk import OctKey

_ALGORITHM: Final = "HS256"


def secrets_of(setting: str) -> list[str]:
    """Return the secrets that a setting holds, the one that signs first."""
    return [part.strip() for part in setting.split(",") if part.strip()]


class SigningKeys:
    """Signs with the first of a setting's secrets, accepts all; `purpose` makes keys that are good for it alone."""

    def __init__(self, setting: str, purpose: str | None = None) -> None:
        self._keys = [OctKey.import_key(_derived(secret, purpose)) for secret in secrets_of(setting)]
        if not self._keys:
            raise ValueError("there is no secret to sign with")

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Return a token of these claims."""
        return jwt.encode({"alg": _ALGORITHM}, dict(claims), self._keys[0])

    def claims(self, token: str) -> Mapping[str, Any]:
        """Return what a token says. Raises JoseError or ValueError for one that none of the keys has signed."""
        return claims_by(token, self._keys)


def claims_by(token: str, keys: Sequence[OctKey]) -> Mapping[str, Any]:
    """Return what a token says that one of the keys has signed, HS256. Raises JoseError or ValueError."""
    for key in keys[:-1]:
        with contextlib.suppress(BadSignatureError):
            return jwt.decode(token, key, algorithms=[_ALGORITHM]).claims
    return jwt.decode(token, keys[-1], algorithms=[_ALGORITHM]).claims


def _derived(secret: str, purpose: str | None) -> str | bytes:
    return secret if purpose is None else hmac.digest(secret.encode(), purpose.encode(), hashlib.sha256)
