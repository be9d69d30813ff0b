"""Signed webhooks: what only they have."""

from datetime import timedelta
from uuid import uuid4

import pytest

from services.alerts.adapters.webhook import WebhookSender
from services.alerts.domain.targets import Webhook
from services.alerts.ports import ChannelGone
from shared.clock import utc_now
from shared.errors import OpenbellError, Permanent, Transient
from shared.outward import AddressRefused, Outward
from shared.work import OutcomeUnknown
from tests.alerts.venues import WebhookVenue, message
from tests.fakes.posts import Answer
from tests.fakes.webhook import FakeWebhook


async def test_a_repeat_after_an_unknown_outcome_carries_the_same_id_and_is_taken_once() -> None:
    with FakeWebhook() as server:
        venue, delivery_id = WebhookVenue(server), uuid4()
        await venue.sender.send(message(venue.target, delivery_id=delivery_id))
        venue.fall_silent()
        with pytest.raises(OutcomeUnknown):
            await venue.sender.send(message(venue.target, delivery_id=delivery_id))
        await venue.sender.send(message(venue.target, delivery_id=delivery_id))
        assert list(server.taken) == [str(delivery_id)]
        assert len(server.requests) == 3
        await venue.sender.close()


async def test_while_secrets_change_over_either_verifies() -> None:
    with FakeWebhook() as server:
        url, secret = server.endpoint()
        sender = WebhookSender(Outward(allowed=server.base))
        other = "whsec_bmV3ZXIgc2VjcmV0IG9mIHRoaXMgdGVzdA=="
        for known in ((secret,), (other, secret), (secret, other)):
            await sender.send(message(Webhook(url, known).text))
        assert len(server.taken) == 3
        with pytest.raises(Permanent, match="401"):
            await sender.send(message(Webhook(url, (other,)).text))
        await sender.close()


async def test_the_signature_is_of_now() -> None:
    with FakeWebhook() as server:
        venue = WebhookVenue(server)
        old = WebhookSender(venue.outward, lambda: utc_now() - timedelta(minutes=6))
        with pytest.raises(Permanent, match="401"):
            await old.send(message(venue.target))
        await venue.sender.close()


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (301, Permanent),
        (307, Permanent),
        (400, Permanent),
        (404, Permanent),
        (408, Transient),
        (410, ChannelGone),
        (425, Transient),
        (500, Transient),
        (503, Transient),
    ],
)
async def test_an_answer_is_judged_by_its_status(status: int, error: type[OpenbellError]) -> None:
    with FakeWebhook() as server:
        venue = WebhookVenue(server)
        server.answer(venue.path, Answer(status, headers={"location": f"{server.base}/elsewhere"}))
        with pytest.raises(error) as caught:
            await venue.sender.send(message(venue.target))
        assert type(caught.value) is error
        assert len(server.requests) == 1
        await venue.sender.close()


async def test_a_webhook_that_leads_inside_is_refused_when_it_is_written_and_when_it_is_used() -> None:
    sender = WebhookSender(Outward(resolve=lambda _host, _port: ["10.0.0.5"]))
    inside = Webhook("https://intranet.example.com/s3cret", ("whsec_c2VjcmV0",)).text
    with pytest.raises(AddressRefused) as caught:
        await sender.check(inside)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(AddressRefused):
        await sender.send(message(inside))
    await sender.close()
