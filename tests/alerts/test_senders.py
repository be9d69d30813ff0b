"""One suite for every sender, against servers that speak the real protocols; then what only one of them has."""

import logging
import re
from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import pytest

from services.alerts.adapters.discord import LONGEST_WAIT_S, Discord, payload
from services.alerts.adapters.smtp import Smtp, SmtpServer
from services.alerts.domain.cutting import clip
from services.alerts.domain.text import REPEAT_NOTE
from services.alerts.ports import ChannelGone
from shared.errors import OpenbellError, Permanent, Transient
from shared.work import Busy, OutcomeUnknown
from tests.alerts.venues import LACKS, VENUES, SmtpVenue, Venue, message
from tests.fakes.discord import Answer, FakeDiscord, find_problem
from tests.fakes.smtp import FakeSmtp


@pytest.fixture
def discord_server() -> Iterator[FakeDiscord]:
    with FakeDiscord() as server:
        yield server


@pytest.fixture
def smtp_server() -> Iterator[FakeSmtp]:
    with FakeSmtp() as server:
        yield server


@pytest.fixture(params=VENUES)
async def venue(request: pytest.FixtureRequest) -> AsyncIterator[Venue]:
    case = re.match(r"test_(\d+)_", request.node.name)
    lacks = LACKS.get(request.param, {})
    if case is not None and int(case[1]) in lacks:
        pytest.skip(lacks[int(case[1])])
    server, over = VENUES[request.param]
    with server() as running:
        made: Venue = over(running)
        yield made
        await made.sender.close()


async def test_1_a_message_arrives_with_its_title_lines_and_notes(venue: Venue) -> None:
    await venue.sender.send(message(venue.target))
    (received,) = venue.received()
    for part in ("AAPL: 2 unusual contracts, score 71", "AAPL 2025-06-20 200 call", "Session 2025-06-02."):
        assert part in received


async def test_2_a_failure_that_passes_is_transient_and_the_next_send_works(venue: Venue) -> None:
    venue.fail_for_now()
    with pytest.raises(Transient):
        await venue.sender.send(message(venue.target))
    await venue.sender.send(message(venue.target))
    assert len(venue.received()) == 1


async def test_3_a_refused_message_is_permanent_but_the_channel_is_not_gone(venue: Venue) -> None:
    venue.refuse_message()
    with pytest.raises(Permanent) as caught:
        await venue.sender.send(message(venue.target))
    assert not isinstance(caught.value, ChannelGone)


async def test_4_a_destination_that_does_not_exist_is_gone(venue: Venue) -> None:
    venue.disappear()
    with pytest.raises(ChannelGone):
        await venue.sender.send(message(venue.target))


async def test_5_silence_after_the_message_leaves_the_outcome_unknown(venue: Venue) -> None:
    venue.fall_silent()
    with pytest.raises(OutcomeUnknown):
        await venue.sender.send(message(venue.target))


async def test_6_a_server_that_is_not_there_is_transient(venue: Venue) -> None:
    sender, target = venue.unreachable()
    with pytest.raises(Transient):
        await sender.send(message(target))
    await sender.close()


async def test_7_no_error_and_no_log_line_holds_the_target(venue: Venue, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = [repr(message(venue.target))]
    await venue.sender.send(message(venue.target))
    for misbehave in (venue.fail_for_now, venue.refuse_message, venue.fall_silent, venue.disappear):
        misbehave()
        with pytest.raises(OpenbellError) as caught:
            await venue.sender.send(message(venue.target))
        told.append(repr(caught.value) + str(caught.value))
    fakes = ("mail.log", "uvicorn")  # the servers of this test log in this process
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(fakes)]
    assert not [line for line in [*told, *ours] if venue.secret in line]


async def test_8_it_can_send_again_after_it_was_closed(venue: Venue) -> None:
    await venue.sender.send(message(venue.target))
    await venue.sender.close()
    await venue.sender.send(message(venue.target))
    assert len(venue.received()) == 2


async def test_9_a_channel_that_asks_to_wait_is_asked_again_then(venue: Venue) -> None:
    venue.ask_to_wait()
    with pytest.raises(Busy) as caught:
        await venue.sender.send(message(venue.target))
    assert caught.value.retry_after_s == 12


async def test_a_webhook_asks_for_a_pause_when_its_bucket_is_empty_and_is_obeyed_to_the_decimal(
    discord_server: FakeDiscord,
) -> None:
    sender, url = Discord(), discord_server.webhook()
    sent = [await sender.send(message(url)) for _ in range(5)]
    assert [one.pause_s > 0 for one in sent] == [False] * 4 + [True]
    assert 0 < sent[-1].pause_s <= 2
    with pytest.raises(Busy) as caught:
        await sender.send(message(url))
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s < 2
    assert not caught.value.everyone
    await sender.close()


@pytest.mark.parametrize(
    ("answer", "wait_s", "everyone"),
    [
        (Answer(429, {"retry_after": 0.354, "global": True}), 0.354, True),
        (Answer(429, {"retry_after": 64.57, "global": False}), 64.57, False),
        (Answer(429, None, {"Retry-After": "12.5"}), 12.5, False),
        (Answer(429, None, {"Retry-After": "soon"}), 1.0, False),
        (Answer(429, None, {"Retry-After": "nan"}), 1.0, False),
        (Answer(429, {"retry_after": 90_000, "global": True}), 90_000, True),
        (Answer(429, None, {"Retry-After": "1e300"}), LONGEST_WAIT_S, False),
    ],
)
async def test_a_429_tells_how_long_and_whom(
    discord_server: FakeDiscord, answer: Answer, wait_s: float, everyone: bool
) -> None:
    sender, url = Discord(), discord_server.webhook()
    discord_server.answer(url, answer)
    with pytest.raises(Busy) as caught:
        await sender.send(message(url))
    assert (caught.value.retry_after_s, caught.value.everyone) == (wait_s, everyone)
    await sender.close()


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_webhook_that_refuses_us_for_good_is_gone(discord_server: FakeDiscord, status: int) -> None:
    sender, url = Discord(), discord_server.webhook()
    discord_server.answer(url, Answer(status, {"code": 10015, "message": "Unknown Webhook"}))
    with pytest.raises(ChannelGone):
        await sender.send(message(url))
    await sender.close()


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refusal_that_is_not_discords_own_passes(discord_server: FakeDiscord, status: int) -> None:
    sender, url = Discord(), discord_server.webhook()
    discord_server.answer(url, Answer(status))
    with pytest.raises(Transient):
        await sender.send(message(url))
    await sender.close()


async def test_discord_mentions_nobody_and_gets_an_answer(discord_server: FakeDiscord) -> None:
    sender, url = Discord(), discord_server.webhook()
    sent = await sender.send(message(url))
    assert sent.provider_id.isdigit()
    assert discord_server.posts[0].payload["allowed_mentions"] == {"parse": []}
    await sender.close()


@pytest.mark.parametrize("unit", ["x", "ä", "🚀"])
def test_whatever_is_too_long_for_discord_is_cut(unit: str) -> None:
    made = payload(message("t", title=unit * 5_000, lines=(unit * 9_000,) * 40, notes=(unit * 5_000,)))
    assert find_problem(made) is None
    assert made["embeds"][0]["description"].endswith("…")


@pytest.mark.parametrize("longest", [1, 2, 5, 10])
def test_a_cut_never_exceeds_what_is_allowed(longest: int) -> None:
    for text in ("x" * 11, "🚀" * 11, "x🚀" * 6):
        assert len(clip(text, longest).encode("utf-16-le")) // 2 <= longest


async def test_mail_carries_the_deliverys_message_id_so_that_a_repeat_is_recognised(
    smtp_server: FakeSmtp,
) -> None:
    venue = SmtpVenue(smtp_server)
    delivery_id = UUID(int=7)
    venue.fall_silent()
    with pytest.raises(OutcomeUnknown):
        await venue.sender.send(message(venue.target, delivery_id=delivery_id))
    await venue.sender.send(message(venue.target, delivery_id=delivery_id, notes=(REPEAT_NOTE,)))
    ids = {mail.message["Message-ID"] for mail in smtp_server.mails}
    assert ids == {f"<{delivery_id}@openbell.invalid>"}
    assert len(smtp_server.mails) == 2


async def test_mail_has_a_plain_and_an_escaped_html_part(smtp_server: FakeSmtp) -> None:
    venue = SmtpVenue(smtp_server)
    await venue.sender.send(message(venue.target))
    mail = smtp_server.mails[0].message
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert "<b>and</b> 1 more" in plain.get_content()
    assert "&lt;b&gt;and&lt;/b&gt; 1 more" in html.get_content()
    assert mail["To"] == venue.target


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("450 busy", Transient),
        ("450 4.1.1 try later", Transient),
        ("554 policy", Permanent),
        ("551 moved", ChannelGone),
        ("550 no such user", ChannelGone),
        ("550 5.1.1 no such user", ChannelGone),
        ("553 5.1.3 bad address", ChannelGone),
        ("550 5.7.1 your address is on a list", Permanent),
        ("550 5.7.26 unauthenticated mail", Permanent),
        ("550 5.2.2 mailbox full", Permanent),
        ("550 5.1.8 bad sender", Permanent),
        ("553 relaying denied", Permanent),
    ],
)
async def test_a_refused_recipient_is_judged_by_its_code(
    smtp_server: FakeSmtp, answer: str, error: type[Exception]
) -> None:
    venue = SmtpVenue(smtp_server)
    smtp_server.refuse(venue.target, answer)
    with pytest.raises(error) as caught:
        await venue.sender.send(message(venue.target))
    assert type(caught.value) is error


async def test_mail_is_not_sent_in_the_clear_when_starttls_is_wanted(smtp_server: FakeSmtp) -> None:
    sender = Smtp(SmtpServer(smtp_server.host, smtp_server.port, "a@openbell.invalid", starttls=True))
    with pytest.raises(Transient):
        await sender.send(message("reader@example.org"))
    assert smtp_server.mails == []


async def test_a_mail_server_that_takes_nothing_from_us_is_tried_again(smtp_server: FakeSmtp) -> None:
    venue = SmtpVenue(smtp_server)
    smtp_server.refuse_sender("550 over your quota")
    with pytest.raises(Transient):
        await venue.sender.send(message(venue.target))
    await venue.sender.send(message(venue.target))
    assert len(smtp_server.mails) == 1
    await venue.sender.close()
