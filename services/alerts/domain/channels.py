"""Where alerts go besides the app: which targets are acceptable, and how to show one without giving it away."""

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from pydantic import EmailStr, TypeAdapter

from services.alerts.domain.targets import (
    Webhook,
    checked_apprise,
    checked_subscription,
    checked_token,
    checked_url,
    schema_of,
    subscription_of,
    webhook_of,
)
from shared.contracts.alerts import Channel
from shared.errors import Invalid

_HOSTS: Final = frozenset({"discord.com", "discordapp.com", "canary.discord.com", "ptb.discord.com"})
_WEBHOOK: Final = re.compile(r"/api(?:/v[0-9]{1,2})?/webhooks/([0-9]{1,20})/([A-Za-z0-9_-]{20,128})", re.ASCII)
UNCONFIRMED: Final = "not confirmed: open the link in the mail that was sent to this address"
MAILS_A_DAY: Final = 5
"""Confirmation mails to a user and to an address, whoever asks for them."""
MAIL_GAP_S: Final = 60.0

MOST: Final[Mapping[Channel, int]] = {"discord": 1, "email": 1, "webhook": 3, "webpush": 10, "fcm": 10, "apprise": 3}
"""How many targets of each channel a user may have."""

_ADDRESS: Final = TypeAdapter[str](EmailStr)


def checked_target(channel: Channel, target: str, *, extra_base: str | None) -> str:
    """Return the target as it is stored (a webhook's without secrets); raises Invalid.

    `extra_base` is an origin that development allows besides.
    """
    match channel:
        case "discord":
            return _webhook(target, extra_base)
        case "email":
            return _address(target)
        case "webhook":
            return Webhook(checked_url(target, extra_base), ()).text
        case "webpush":
            return checked_subscription(target, extra_base).text
        case "fcm":
            return checked_token(target)
        case "apprise":
            return checked_apprise(target)


def _address(target: str) -> str:
    if not target.isascii():
        raise Invalid("an address outside ASCII is not supported")
    try:
        return _ADDRESS.validate_python(target)
    except ValueError as error:
        raise Invalid("this is not an e-mail address") from error


def _webhook(url: str, extra_base: str | None) -> str:
    wanted = "a Discord webhook looks like https://discord.com/api/webhooks/<id>/<token>"
    try:
        parts = urlsplit(url)
        has_port = parts.port is not None
    except ValueError as error:
        raise Invalid(wanted) from error
    origin = f"{parts.scheme}://{parts.netloc}"
    at_home = parts.scheme == "https" and parts.netloc.lower() in _HOSTS and not has_port
    if not (at_home or (extra_base is not None and origin == extra_base.rstrip("/"))):
        raise Invalid(wanted)
    if _WEBHOOK.fullmatch(parts.path) is None or url != origin + parts.path:
        raise Invalid(wanted)
    return url


def next_mail_in_s(sent: Sequence[datetime], now: datetime) -> float:
    """Return how long the next confirmation mail has to wait, given those of the last day, newest first."""
    waits = [MAIL_GAP_S - (now - sent[0]).total_seconds()] if sent else []
    if len(sent) >= MAILS_A_DAY:
        waits.append(86_400.0 - (now - sent[MAILS_A_DAY - 1]).total_seconds())
    return max([0.0, *waits])


def url_of(channel: Channel, target: str) -> str:
    """Return where a target is: a webhook's or subscription's URL, of other channels all of the target."""
    if channel == "webhook":
        return webhook_of(target).url
    return subscription_of(target).endpoint if channel == "webpush" else target


def lane_of(channel: Channel, target: str, key: bytes | None = None) -> str:
    """Return the name of the destination that gives nothing of it away; one of an address however it is written.

    With a key, nobody without it can tell whether a guess is right.
    """
    place = (target.lower() if channel == "email" else url_of(channel, target)).encode()
    digest = hashlib.sha256(place).digest() if key is None else hmac.digest(key, place, hashlib.sha256)
    return f"{channel}/{digest.hex()[:32]}"


def target_id(lane: str) -> str:
    """Return what a target is called outside: the part of its lane after the channel."""
    return lane.partition("/")[2]


def masked(channel: Channel, target: str) -> str:
    """Return what may be shown of a target: URLs and tokens are secrets, an address is not."""
    match channel:
        case "email":
            return target
        case "webhook" | "webpush":
            return f"https://{urlsplit(url_of(channel, target)).hostname}/…"
        case "fcm":
            return f"…{target[-4:]}"
        case "apprise":
            return f"{schema_of(target)}://…"
        case "discord":
            return _masked_webhook(target)


def _masked_webhook(target: str) -> str:
    found = _WEBHOOK.search(urlsplit(target).path)
    return f"https://{urlsplit(target).netloc}/api/webhooks/…{found[1][-4:] if found else ''}/…"
