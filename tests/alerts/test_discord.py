"""What only Discord has: pictures, the limit over all webhooks, the ban."""

from collections.abc import Iterator

import pytest

from services.alerts.adapters.discord import Discord
from services.alerts.domain.text import IMAGE_MAX
from services.alerts.ports import ChannelGone
from shared.work import Busy
from tests.alerts.venues import message
from tests.fakes.discord import FakeDiscord


@pytest.fixture
def discord_server() -> Iterator[FakeDiscord]:
    with FakeDiscord() as server:
        yield server


async def test_a_chart_goes_along_and_the_embed_shows_it(discord_server: FakeDiscord) -> None:
    sender, url = Discord(), discord_server.webhook()
    await sender.send(message(url, image=b"\x89PNG..."))
    (post,) = discord_server.posts
    assert post.files == {"chart.png": b"\x89PNG..."}
    assert post.payload["embeds"][0]["image"] == {"url": "attachment://chart.png"}
    assert post.payload["allowed_mentions"] == {"parse": []}
    await sender.close()


async def test_a_chart_that_is_too_large_is_left_out_and_the_footer_says_so(discord_server: FakeDiscord) -> None:
    sender, url = Discord(), discord_server.webhook()
    await sender.send(message(url, image=b"x" * (IMAGE_MAX + 1)))
    (post,) = discord_server.posts
    assert post.files == {}
    assert "larger than 8 MiB" in post.payload["embeds"][0]["footer"]["text"]
    await sender.close()


async def test_a_limit_over_all_webhooks_holds_everybody_back() -> None:
    with FakeDiscord(global_limit=2, clock=lambda: 0.0) as server:
        sender = Discord()
        for _ in range(2):
            await sender.send(message(server.webhook()))
        with pytest.raises(Busy) as caught:
            await sender.send(message(server.webhook()))
        assert (caught.value.retry_after_s, caught.value.everyone) == (1.0, True)
        await sender.close()


async def test_a_ban_is_waited_out_by_everybody() -> None:
    with FakeDiscord(ban_after=3) as server:
        sender, url = Discord(), server.webhook()
        for _ in range(3):
            with pytest.raises(ChannelGone):
                await sender.send(message(f"{server.base}/api/webhooks/1/gone"))
        with pytest.raises(Busy) as caught:
            await sender.send(message(url))
        assert caught.value.everyone
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s > 3_000
        await sender.close()


async def test_so_many_refusals_stop_the_sender_before_the_ban_and_it_goes_on_after_the_window() -> None:
    now = [0.0]
    with FakeDiscord(ban_after=10) as server:
        sender, url = Discord(most_invalid=5, clock=lambda: now[0]), server.webhook()
        for _ in range(5):
            with pytest.raises(ChannelGone):
                await sender.send(message(f"{server.base}/api/webhooks/1/gone"))
            now[0] += 10.0
        with pytest.raises(Busy) as caught:
            await sender.send(message(url))
        assert (caught.value.retry_after_s, caught.value.everyone) == (550.0, True)
        assert len(server.requests) == 5
        now[0] += 550.0
        assert (await sender.send(message(url))).provider_id
        await sender.close()
