"""A mail server that keeps what it gets, in a thread of its own (aiosmtpd speaks the protocol).

with FakeSmtp() as smtp:
    smtp.host, smtp.port
    ...
    smtp.mails[0].message["Subject"]
"""

import asyncio
import socket
import time
from collections import deque
from dataclasses import dataclass
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from typing import Any, Self

from aiosmtpd.controller import Controller

SILENCE = "silence"


@dataclass(frozen=True)
class Mail:
    """A mail that was handed in. `at` is Unix time."""

    sender: str
    recipients: tuple[str, ...]
    message: EmailMessage
    at: float


class FakeSmtp:
    """A mail server on 127.0.0.1, between `with` and its end."""

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.mails: list[Mail] = []
        self._refused: dict[str, str] = {}
        self._data_answers: deque[str] = deque()
        self._sender_answer: str | None = None
        self._controller: Controller | None = None

    def refuse(self, address: str, answer: str) -> None:
        """Answer a recipient with e.g. "550 no such user"."""
        self._refused[address] = answer

    def refuse_sender(self, answer: str) -> None:
        """Answer the next MAIL FROM with e.g. "550 over your quota"."""
        self._sender_answer = answer

    def answer_data(self, *answers: str) -> None:
        """Answer the next texts with these, then as usual; SILENCE keeps the text and never answers."""
        self._data_answers.extend(answers)

    def __enter__(self) -> Self:
        with socket.socket() as probe:
            probe.bind((self.host, 0))
            self.port = probe.getsockname()[1]
        self._controller = Controller(self, hostname=self.host, port=self.port)
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._controller is not None
        self._controller.stop()

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's name
        self, server: Any, session: Any, envelope: Any, address: str, mail_options: list[str]
    ) -> str:
        answer, self._sender_answer = self._sender_answer, None
        if answer is None:
            envelope.mail_from = address
            envelope.mail_options.extend(mail_options)
        return answer or "250 OK"

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: Any, session: Any, envelope: Any, address: str, rcpt_options: list[str]
    ) -> str:
        if address in self._refused:
            return self._refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        answer = self._data_answers.popleft() if self._data_answers else "250 kept"
        if answer.startswith("250") or answer == SILENCE:
            message = BytesParser(policy=default).parsebytes(envelope.content)
            assert isinstance(message, EmailMessage)
            self.mails.append(Mail(envelope.mail_from, tuple(envelope.rcpt_tos), message, time.time()))
        if answer == SILENCE:
            await asyncio.Event().wait()
        return answer
