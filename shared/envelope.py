"""Envelope encryption: a fresh data key for each thing that is sealed, wrapped by a key of the settings.

AES-256-GCM twice, each time with a nonce of its own before the ciphertext. What is sealed is bound to what it is about
(`about`, authenticated and not stored): a row that was moved does not open. Rotation wraps the data key anew and leaves
the rest as it is.

What would surprise you: no error from here holds a cause, for a cause may hold a key.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.identity import DEVELOPMENT_MARK, safe_secret
from shared.settings import SharedSettings

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_LONGEST_ID: Final = 64

RandomBytes = Callable[[int], bytes]


class BadKeys(RuntimeError):
    """Keys must be written id:base64,id:base64, each of 32 bytes, each id once."""


class Unopened(Exception):
    """It was sealed with a key that is not here, is about something else, or was changed. The text says which key."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What can be kept anywhere: `wrapped` is the data key under the key `key_id`, `body` what it encrypts."""

    key_id: str
    wrapped: bytes
    body: bytes


def keys_of(name: str, value: str, settings: SharedSettings) -> "Keys":
    """Return the keys of the setting `name`.

    Raises BadKeys, and UnsafeSecret in production (or where HTTP listens beyond loopback) without keys or with the
    development key, whatever it is called.
    """
    safe_secret(name, value, settings)
    keys = Keys(value)
    for secret in keys.development:
        safe_secret(name, secret, settings)
    return keys


class Keys:
    """Key-encryption keys: the first encrypts, all decrypt."""

    def __init__(self, value: str) -> None:
        self._keys: dict[str, AESGCM] = {}
        self.development: list[str] = []
        for number, part in enumerate(value.split(","), 1):
            key_id, key = _parsed(part.strip(), number)
            if key_id in self._keys:
                raise BadKeys(f"key {number}: this id was given before")
            self._keys[key_id] = AESGCM(key)
            if key.startswith(DEVELOPMENT_MARK.encode()) or key_id.startswith(DEVELOPMENT_MARK):
                self.development.append(DEVELOPMENT_MARK)
        self.current = next(iter(self._keys))

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._keys)})"

    @property
    def ids(self) -> frozenset[str]:
        """What the keys are called."""
        return frozenset(self._keys)

    def get(self, key_id: str) -> AESGCM:
        """Return a key. Raises Unopened."""
        key = self._keys.get(key_id)
        if key is None:
            raise Unopened(f"the key {key_id!r} is not in the settings")
        return key


class Envelope:
    """Seals and opens."""

    def __init__(self, keys: Keys, random_bytes: RandomBytes) -> None:
        self._keys = keys
        self._random = random_bytes

    @property
    def current(self) -> str:
        """The id of the key that encrypts."""
        return self._keys.current

    def seal(self, plain: bytes, about: bytes) -> Sealed:
        """Encrypt under a data key of its own."""
        data_key = self._random(KEY_BYTES)
        body = self._encrypt(AESGCM(data_key), plain, b"body/" + about)
        return self._wrap(data_key, about, body)

    def open(self, sealed: Sealed, about: bytes) -> bytes:
        """Return what was sealed. Raises Unopened."""
        return _decrypt(AESGCM(self._unwrap(sealed, about)), sealed.body, b"body/" + about, sealed.key_id)

    def rewrap(self, sealed: Sealed, about: bytes) -> Sealed:
        """Return the same under the current key. Raises Unopened."""
        return self._wrap(self._unwrap(sealed, about), about, sealed.body)

    def _wrap(self, data_key: bytes, about: bytes, body: bytes) -> Sealed:
        current = self._keys.current
        return Sealed(current, self._encrypt(self._keys.get(current), data_key, b"key/" + about), body)

    def _unwrap(self, sealed: Sealed, about: bytes) -> bytes:
        return _decrypt(self._keys.get(sealed.key_id), sealed.wrapped, b"key/" + about, sealed.key_id)

    def _encrypt(self, key: AESGCM, plain: bytes, about: bytes) -> bytes:
        nonce = self._random(_NONCE_BYTES)
        return nonce + key.encrypt(nonce, plain, about)


def _decrypt(key: AESGCM, sealed: bytes, about: bytes, key_id: str) -> bytes:
    try:
        return key.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about)
    except (InvalidTag, ValueError):
        raise Unopened(f"it does not open with the key {key_id!r}") from None


def _parsed(part: str, number: int) -> tuple[str, bytes]:
    key_id, _, encoded = part.partition(":")
    if not key_id.isascii() or not key_id.isprintable() or not 0 < len(key_id) <= _LONGEST_ID or " " in key_id:
        raise BadKeys(f"key {number}: give it an id of up to {_LONGEST_ID} visible characters before a colon")
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise BadKeys(f"key {number}: what follows its id is not base64") from None
    if len(key) != KEY_BYTES:
        raise BadKeys(f"key {number} has {len(key)} bytes: it must have {KEY_BYTES}")
    return key_id, key
