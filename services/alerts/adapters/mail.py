"""A letter: what every way to send mail is given, whether by SMTP or by a provider's API.

The Message-ID is made of the delivery's id and the sender's domain, so an attempt that is made again is recognised as
the same letter. Each header stands once. What a server signs (DKIM) is told in docs/mail.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import format_datetime, parseaddr
from typing import Final

from services.alerts.domain.text import Message, fitted
from services.alerts.templates import rendered
from shared.errors import Permanent

ONE_CLICK: Final = "List-Unsubscribe=One-Click"


@dataclass(frozen=True, slots=True)
class Letter:
    """A mail without its envelope. `headers` are those besides From, To and Subject."""

    sender: str
    to: str
    subject: str
    text: str
    html: str
    headers: Mapping[str, str]
    image: bytes | None


def letter(message: Message, sender: str) -> Letter:
    """Return the letter that a message is. Raises Permanent for an address or a template that cannot be used."""
    message = fitted(message)
    if not message.target.isprintable() or not message.target.isascii():
        raise Permanent("the address has characters that no address has")
    shown = rendered("email", message)
    if shown.html is None:
        raise Permanent("there is no HTML for this mail")
    domain = parseaddr(sender)[1].rpartition("@")[2]
    headers = {
        "Date": format_datetime(message.at),
        "Message-ID": f"<{message.delivery_id}@{domain}>",
        "Auto-Submitted": "auto-generated",
    }
    if message.unsubscribe is not None:
        headers |= {"List-Unsubscribe": f"<{message.unsubscribe}>", "List-Unsubscribe-Post": ONE_CLICK}
    return Letter(sender, message.target, shown.subject, shown.text, shown.html, headers, message.image)
