"""Apprise: what is taken, and that nothing else is."""

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from services.alerts.adapters.apprise import AppriseRefused, AppriseSender, is_taken, names_host
from services.alerts.service import Options
from services.alerts.workers import UNHEARD_REASON, Delivery
from shared.db import Database
from shared.work import OutcomeUnknown, Worker
from tests.alerts.conftest import NOW, Bench, FakeSender, activity
from tests.conftest import ManualClock
from tests.fakes.apprise_target import plugins

LOCAL = "dbus qt kde glib gio gnome macosx windows syslog rsyslog blink1 growl mailto mailtos mqtt mqtts irc xmpp smpp"


@pytest.fixture(autouse=True)
def known() -> dict[str, Any]:
    return plugins()


def test_no_plugin_that_touches_this_machine_or_opens_sockets_of_its_own_is_taken(known: dict[str, Any]) -> None:
    assert not [schema for schema in LOCAL.split() if schema in known and is_taken(known[schema], schema)]
    for schema, plugin in known.items():
        if is_taken(plugin, schema):
            assert hasattr(sys.modules[plugin.__module__], "requests"), schema
            assert names_host(plugin) or plugin.secure_protocol, schema


def test_the_hundred_services_with_hosts_of_their_own_are_taken(known: dict[str, Any]) -> None:
    fixed = {schema for schema, plugin in known.items() if is_taken(plugin, schema) and not names_host(plugin)}
    assert {"slack", "tgram", "pover", "pagerduty", "opsgenie", "twilio", "zulip"} <= fixed
    assert not {"discord", "fcm", "vapid", "json", "gotify", "file"} & fixed
    assert len(fixed) > 100


def test_a_plugin_whose_host_is_put_together_was_looked_at(known: dict[str, Any]) -> None:
    """What these put into the host is one of a list, or has no dot; zulip's is checked. Look at new ones first."""
    looked_at = {"cliq", "kaleyra", "ringcentral", "ryver", "ses", "sinch", "sns", "zulip"}
    found = {
        sys.modules[plugin.__module__].__name__.rpartition(".")[2]
        for schema, plugin in known.items()
        if is_taken(plugin, schema) and not names_host(plugin)
        if re.search(r"""["'](?:https?|wss?)://[^"'/\s]*[{%]""", inspect.getsource(sys.modules[plugin.__module__]))
    }
    assert found <= looked_at


@pytest.mark.parametrize(
    "url",
    [
        "dbus://",
        "syslog://localhost",
        "nothing://s3cret",
        "discord://s3cret/s3cret",
        "json://127.0.0.1/s3cret",
        "jsons://hooks.example.com/s3cret",
        "json://allowed.example.com:81/s3cret",
        "gotify://169.254.169.254/s3cret",
        "tgram://123456789:abcdefg_hijklmnop-s3cret/chat?template=/etc/passwd",
        "tgram://123456789:abcdefg_hijklmnop-s3cret/chat?verify=no",
        "tgram://123456789:abcdefg_hijklmnop-s3cret/chat?RTO=100000",
        "tgram://123456789:abcdefg_hijklmnop-s3cret/chat?%74emplate=/etc/passwd",
        "tgram://nonsense",
        "zulip://bot@169.254.169.254/s3crets3crets3crets3crets3crets3",
        "zulip://bot@corp.internal.example/s3crets3crets3crets3crets3crets3",
        "nostr://0000000000000000000000000000000000000000000000000000000000s3cret/name@169.254.169.254",
        "bluesky://user@s3cret",
    ],
)
async def test_what_is_not_taken_is_refused_without_being_repeated(url: str) -> None:
    sender = AppriseSender(["allowed.example.com:80"])
    with pytest.raises(AppriseRefused) as caught:
        await sender.check(url)
    assert "s3cret" not in str(caught.value)
    await sender.close()


@pytest.mark.parametrize(
    "url",
    [
        "tgram://123456789:abcdefg_hijklmnop/12315544/",
        "zulip://bot@acme/s3crets3crets3crets3crets3crets3",
        "json://allowed.example.com/x",
        "jsons://LAN:8443/x",
    ],
)
async def test_a_service_of_its_own_host_and_a_host_that_is_named_are_taken(url: str) -> None:
    sender = AppriseSender(["allowed.example.com", "lan:8443"])
    await sender.check(url)
    await sender.close()


async def unheard(bench: Bench, worker: Worker, sender: FakeSender, symbol: str) -> None:
    """Let a delivery fail until it ends as unknown."""
    await bench.tell(activity(symbol=symbol))
    for _ in range(12):
        sender.errors = [OutcomeUnknown("Apprise says that it failed, not why")]
        await worker.turn()
        await worker.idle()
        bench.clock.advance(3_600)
    sender.errors = []


async def test_a_channel_of_which_three_messages_in_a_row_fail_is_disabled_with_a_reason(
    open_database: Callable[[str], Database],
) -> None:
    bench, sender = Bench(open_database("alerts"), ManualClock(NOW)), FakeSender()
    bench.offer(Options(offered=("apprise",)))
    work = Delivery(
        *("apprise", sender, bench.store, bench.notices, bench.door),
        router=bench.router,
        targets=bench.targets,
        clicks=bench.clicks,
        clock=bench.clock,
    ).work(1)
    worker = Worker(work, bench.door, bench.clock, draw=lambda: 0.5)
    user = await bench.user("A", "B", "C", "D", "E", "F", "G")
    await bench.channel(user, "apprise", "slack://tokens/of/somebody")
    for symbol in ("A", "B"):
        await unheard(bench, worker, sender, symbol)
    await bench.tell(activity(symbol="C"))
    await worker.turn()
    await worker.idle()
    for symbol in ("D", "E"):
        await unheard(bench, worker, sender, symbol)
    assert [row["enabled"] for row in await bench.rows("channels")] == [True]  # one was taken in between
    await unheard(bench, worker, sender, "F")
    assert [(row["enabled"], row["reason"]) for row in await bench.rows("channels")] == [(False, UNHEARD_REASON)]
    ends = [row["status"] for row in sorted(await bench.rows("deliveries"), key=lambda row: row["created_at"])]
    assert ends == ["unknown", "unknown", "done", "unknown", "unknown", "unknown"]
    await bench.tell(activity(symbol="G"))
    assert len(await bench.rows("deliveries")) == len(ends)
