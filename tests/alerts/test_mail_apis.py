"""What only one way to send mail has: idempotency, limits, headers, pictures."""

import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from services.alerts.adapters.mail import letter
from services.alerts.adapters.resend import Resend
from services.alerts.adapters.sendgrid import SendGrid
from services.alerts.adapters.smtp import Smtp, SmtpServer
from services.alerts.domain.text import IMAGE_MAX, Message
from shared.errors import Permanent, Transient
from shared.work import Busy, OutcomeUnknown
from tests.alerts.conftest import NOW
from tests.alerts.mail_venues import FROM
from tests.fakes.mail_apis import FakeResend, FakeSendGrid, Refuse
from tests.fakes.smtp import FakeSmtp

UNSUBSCRIBE = "https://openbell.example/links/unsubscribe?token=abc"
PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 100


def message(**changed: Any) -> Message:
    made = Message(
        delivery_id=UUID(int=7),
        target="reader@example.org",
        title="AAPL: 2 unusual contracts, score 71",
        lines=("AAPL 2025-06-20 200 call",),
        notes=("Rule watchlist.",),
        simulated=False,
        at=NOW,
        unsubscribe=UNSUBSCRIBE,
    )
    return replace(made, **changed)


@pytest.fixture
async def sendgrid() -> AsyncIterator[tuple[FakeSendGrid, SendGrid]]:
    with FakeSendGrid() as server:
        sender = SendGrid(server.key, FROM, base=server.base, timeout_s=0.5)
        yield server, sender
        await sender.close()


@pytest.fixture
async def resend() -> AsyncIterator[tuple[FakeResend, Resend]]:
    with FakeResend(limit=3, clock=lambda: 0.0) as server:
        sender = Resend(server.key, FROM, base=server.base, timeout_s=0.5)
        yield server, sender
        await sender.close()


async def test_sendgrid_is_told_the_delivery_and_how_to_unsubscribe(sendgrid: tuple[FakeSendGrid, SendGrid]) -> None:
    server, sender = sendgrid
    sent = await sender.send(message(image=PNG))
    assert sent.provider_id
    (mail,) = server.mails
    assert mail["custom_args"] == {"delivery_id": str(UUID(int=7))}
    assert mail["from"] == {"email": "alerts@openbell.invalid", "name": "Openbell"}
    assert mail["headers"]["List-Unsubscribe"] == f"<{UNSUBSCRIBE}>"
    assert mail["headers"]["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert mail["headers"]["Message-ID"] == f"<{UUID(int=7)}@openbell.invalid>"
    assert base64.b64decode(mail["attachments"][0]["content"]) == PNG
    assert f"cid:{mail['attachments'][0]['content_id']}" in mail["content"][1]["value"]


async def test_a_mail_that_resend_took_before_is_not_sent_again_even_with_other_words(
    resend: tuple[FakeResend, Resend],
) -> None:
    server, sender = resend
    server.answer(Refuse(hang=True))
    with pytest.raises(OutcomeUnknown):
        await sender.send(message())
    assert len(server.mails) == 1
    await sender.send(message(notes=("This may repeat an earlier message.",)))
    assert len(server.mails) == 1
    assert {one["idempotency-key"] for one in server.requests} == {f"openbell/{UUID(int=7)}"}
    await sender.send(message(delivery_id=UUID(int=8)))
    assert len(server.mails) == 2
    assert server.mails[1]["tags"] == [{"name": "delivery_id", "value": str(UUID(int=8))}]


async def test_resends_limit_is_obeyed_by_everybody(resend: tuple[FakeResend, Resend]) -> None:
    server, sender = resend
    for number in range(3):
        await sender.send(message(delivery_id=UUID(int=number)))
    with pytest.raises(Busy) as caught:
        await sender.send(message(delivery_id=UUID(int=9)))
    assert (caught.value.retry_after_s, caught.value.everyone) == (1.0, True)
    assert len(server.mails) == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Refuse(401, {"name": "missing_api_key"}), Transient),
        (Refuse(403, {"name": "validation_error"}), Transient),
        (Refuse(409, {"name": "concurrent_idempotent_requests"}), Transient),
        (Refuse(413), Permanent),
        (Refuse(422, {"name": "invalid_attachment"}), Permanent),
        (Refuse(429, {"name": "daily_quota_exceeded"}), Busy),
        (Refuse(429, None, {"retry-after": "soon"}), Busy),
        (Refuse(500, {"name": "application_error"}), Transient),
        (Refuse(502), Transient),
    ],
)
async def test_resends_refusals_are_judged_by_status_and_name(
    resend: tuple[FakeResend, Resend], answer: Refuse, error: type[Exception]
) -> None:
    server, sender = resend
    server.answer(answer)
    with pytest.raises(error) as caught:
        await sender.send(message())
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Refuse(400, {"errors": [{"message": "reader@example.org", "field": "subject"}]}), Permanent),
        (Refuse(401, {"errors": [{"message": "no", "field": None}]}), Transient),
        (Refuse(403, {"errors": [{"message": "no", "field": "from"}]}), Transient),
        (Refuse(413), Permanent),
        (Refuse(429, None, {"Retry-After": "7"}), Busy),
        (Refuse(503, None, {"Retry-After": "30"}), Transient),
    ],
)
async def test_sendgrids_refusals_are_judged_by_status_and_field_and_repeat_no_value(
    sendgrid: tuple[FakeSendGrid, SendGrid], answer: Refuse, error: type[Exception]
) -> None:
    server, sender = sendgrid
    server.answer(answer)
    with pytest.raises(error) as caught:
        await sender.send(message())
    assert type(caught.value) is error
    assert "reader" not in str(caught.value)


async def test_a_wrong_key_waits_for_somebody_to_put_it_right(
    sendgrid: tuple[FakeSendGrid, SendGrid], resend: tuple[FakeResend, Resend]
) -> None:
    for sender in (SendGrid("wrong", FROM, base=sendgrid[0].base), Resend("wrong", FROM, base=resend[0].base)):
        with pytest.raises(Transient) as caught:
            await sender.send(message())
        assert "wrong" not in str(caught.value)
        await sender.close()


@pytest.fixture
def smtp() -> Any:
    with FakeSmtp() as server:
        yield server


async def test_a_mail_by_smtp_is_ready_to_be_signed(smtp: FakeSmtp) -> None:
    sender = Smtp(SmtpServer(smtp.host, smtp.port, FROM, starttls=False))
    await sender.send(message(image=PNG))
    (mail,) = smtp.mails
    names = [name.lower() for name in mail.message]
    assert len(names) == len(set(names))
    assert {"from", "to", "subject", "date", "message-id", "mime-version", "list-unsubscribe"} <= set(names)
    assert mail.message["List-Unsubscribe"] == f"<{UNSUBSCRIBE}>"
    assert mail.sender == "alerts@openbell.invalid"  # the envelope's domain is From's, so SPF aligns
    assert mail.message.get_content_type() == "multipart/alternative"
    plain, related = mail.message.iter_parts()
    assert (plain.get_content_type(), related.get_content_type()) == ("text/plain", "multipart/related")
    html, image = related.iter_parts()
    assert "cid:chart.png" in html.get_content()
    assert (image["Content-ID"], image.get_content()) == ("<chart.png>", PNG)
    assert UNSUBSCRIBE in plain.get_content()


async def test_a_mail_that_nobody_can_unsubscribe_from_does_not_say_so(smtp: FakeSmtp) -> None:
    await Smtp(SmtpServer(smtp.host, smtp.port, FROM, starttls=False)).send(message(unsubscribe=None))
    assert smtp.mails[0].message["List-Unsubscribe"] is None
    assert "nsubscribe" not in str(smtp.mails[0].message.get_body(("plain",)))


def test_a_picture_that_is_too_large_is_left_out_and_the_mail_says_so() -> None:
    made = letter(message(image=b"x" * (IMAGE_MAX + 1)), FROM)
    assert made.image is None
    assert "cid:" not in made.html
    assert "larger than 8 MiB" in made.text


@pytest.mark.parametrize("target", ["a@b.org\r\nBcc: c@d.org", "ä@example.org", "a@b.org\x00"])
def test_an_address_with_a_newline_is_refused_for_good(target: str) -> None:
    with pytest.raises(Permanent):
        letter(message(target=target), FROM)


async def test_a_title_with_a_newline_makes_no_header(smtp: FakeSmtp) -> None:
    title = "AAPL\r\nBcc: eve@example.org"
    await Smtp(SmtpServer(smtp.host, smtp.port, FROM, starttls=False)).send(message(title=title))
    (mail,) = smtp.mails
    assert mail.message["Subject"] == "AAPL Bcc: eve@example.org"
    assert mail.message["Bcc"] is None
    assert mail.recipients == ("reader@example.org",)
