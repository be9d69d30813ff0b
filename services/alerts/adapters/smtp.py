"""E-mail, by SMTP.

A message whose outcome is unknown (the server fell silent after the text) is sent again with the same
Message-ID, which is made of the delivery's id: servers and readers can tell that it is the same message.

What would surprise you: each step of the SMTP conversation is ours, because what an error means depends on where
it happens; before DATA nothing was sent, after it nobody knows.
"""

import contextlib
import re
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import parseaddr
from typing import Final

import aiosmtplib

from services.alerts.adapters.mail import Letter, letter
from services.alerts.domain.text import IMAGE_NAME, Message
from services.alerts.ports import ChannelGone, Sent
from shared.errors import Permanent, Transient
from shared.external import calling
from shared.work import OutcomeUnknown

_NO_SUCH_MAILBOX: Final = frozenset({550, 551})
_ENHANCED: Final = re.compile(r"5\.(\d{1,3})\.(\d{1,3})\b", re.ASCII)
_ADDRESS: Final = "1"  # RFC 3463: 5.1.x is about an address, 5.7.x about policy
_SENDERS: Final = frozenset({"7", "8"})  # ... and 5.1.7 and 5.1.8 about the sender's

_POLICY: Final = SMTP_POLICY.clone(cte_type="7bit")


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where mail is handed in."""

    host: str
    port: int
    sender: str
    user: str | None = None
    password: str | None = None
    starttls: bool = True
    timeout_s: float = 20.0


class Smtp:
    """Sends messages, each over a connection of its own."""

    def __init__(self, server: SmtpServer) -> None:
        self._server = server

    async def send(self, message: Message) -> Sent:
        """Hand the message in; see services.alerts.ports for how it may end."""
        mail = mime(letter(message, self._server.sender))
        with calling("smtp"):
            client = await self._connect()
            try:
                await self._envelope(client, message.target)
                answer = await self._data(client, mail)
            finally:
                with contextlib.suppress(aiosmtplib.SMTPException, OSError):
                    await client.quit(timeout=2.0)
                client.close()
        return Sent(answer)

    async def close(self) -> None:
        """Nothing is kept open."""

    async def _connect(self) -> aiosmtplib.SMTP:
        server = self._server
        client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            username=server.user,
            password=server.password,
            start_tls=server.starttls,
            timeout=server.timeout_s,
        )
        try:
            await client.connect()
        except (aiosmtplib.SMTPException, OSError) as error:
            client.close()
            raise Transient(f"the mail server does not let us in: {_reason(error)}") from None
        return client

    async def _envelope(self, client: aiosmtplib.SMTP, recipient: str) -> None:
        try:
            await client.mail(parseaddr(self._server.sender)[1])
        except aiosmtplib.SMTPResponseException as error:  # it is about us: a quota, a sender that is not ours yet
            raise Transient(f"the mail server does not take mail from us now: {error.code}") from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Transient(f"the mail server went away: {_reason(error)}") from None
        try:
            await client.rcpt(recipient)
        except aiosmtplib.SMTPRecipientRefused as error:
            if _says_gone(error):
                raise ChannelGone(f"the mail server knows no such mailbox ({error.code})") from None
            raise _by_code(error) from None
        except aiosmtplib.SMTPResponseException as error:
            raise _by_code(error) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Transient(f"the mail server went away: {_reason(error)}") from None

    async def _data(self, client: aiosmtplib.SMTP, mail: EmailMessage) -> str:
        try:
            return (await client.data(mail.as_bytes(policy=_POLICY))).message
        except aiosmtplib.SMTPResponseException as error:
            raise _by_code(error) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            raise OutcomeUnknown(f"the mail server fell silent after the text: {_reason(error)}") from None


def mime(letter: Letter) -> EmailMessage:
    """Return the letter as SMTP carries it: the text, then HTML with the picture that it shows."""
    mail = EmailMessage(policy=_POLICY)
    mail["From"] = letter.sender
    mail["To"] = letter.to
    mail["Subject"] = letter.subject
    for name, value in letter.headers.items():
        mail[name] = value
    mail.set_content(letter.text)
    mail.add_alternative(letter.html, subtype="html")
    if letter.image is not None:
        html = mail.get_body(("html",))
        assert html is not None  # noqa: S101 - it was added just now
        html.add_related(letter.image, "image", "png", cid=f"<{IMAGE_NAME}>", filename=IMAGE_NAME, disposition="inline")
    return mail


def _says_gone(error: aiosmtplib.SMTPRecipientRefused) -> bool:
    """Whether a refused recipient does not exist; 550 may also be a policy, which the enhanced status tells apart."""
    enhanced = _ENHANCED.match(error.message)
    if enhanced is None:
        return error.code in _NO_SUCH_MAILBOX
    return error.code >= 500 and enhanced[1] == _ADDRESS and enhanced[2] not in _SENDERS  # noqa: PLR2004 - RFC 5321: 5yz


def _by_code(error: aiosmtplib.SMTPResponseException) -> Exception:
    if 400 <= error.code < 500:  # noqa: PLR2004 - RFC 5321: 4yz is transient
        return Transient(f"the mail server answered {error.code}")
    return Permanent(f"the mail server refused the message: {error.code}")


def _reason(error: Exception) -> str:
    code = getattr(error, "code", None)
    return f"{type(error).__name__}{f' {code}' if code else ''}"
