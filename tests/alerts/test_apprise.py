"""Apprise: what is taken, and that nothing else is."""

import sys
from typing import Any

import pytest

from services.alerts.adapters.apprise import AppriseRefused, AppriseSender, is_taken, names_host
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
    ],
)
async def test_what_is_not_taken_is_refused_without_being_repeated(url: str) -> None:
    sender = AppriseSender(["allowed.example.com:80"])
    with pytest.raises(AppriseRefused) as caught:
        await sender.check(url)
    assert "s3cret" not in str(caught.value)
    await sender.close()


@pytest.mark.parametrize(
    "url", ["tgram://123456789:abcdefg_hijklmnop/12315544/", "json://allowed.example.com/x", "jsons://LAN:8443/x"]
)
async def test_a_service_of_its_own_host_and_a_host_that_is_named_are_taken(url: str) -> None:
    sender = AppriseSender(["allowed.example.com", "lan:8443"])
    await sender.check(url)
    await sender.close()
