"""The long tail: services that Apprise knows, each by a URL that holds its credentials.

Apprise says only whether it went well. A failure may be a refusal, a server that is away, or an answer that came too
late, so each is an unknown outcome: it is sent again with a line that says so, and after the last attempt it ends as
unknown.

What would surprise you: which schemas are taken is derived from the plugins, not listed. A plugin must speak HTTP by
`requests` (which leaves out whatever touches this machine: dbus, syslog, windows and the like), over TLS, to a host of
its own. One that goes to a host of the user's choice is taken for the hosts that the operator names, because Apprise
opens its connections itself and nothing could pin them to an address that was checked.
"""

import asyncio
import logging
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from services.alerts.domain.targets import schema_of
from services.alerts.domain.text import Message
from services.alerts.ports import Sent
from services.alerts.templates import rendered
from shared.errors import Invalid
from shared.external import calling
from shared.work import OutcomeUnknown

_OURS: Final = frozenset({"discord", "fcm", "vapid"})
"""Channels of their own here; the latter two read key files."""
_ANYWHERE: Final = frozenset({"nostr", "bluesky", "bsky"})
"""They go to hosts that an account's records name, whatever the URL says."""
_REFUSED_ARGUMENTS: Final = frozenset(
    {
        *("verify", "redirect", "cto", "rto", "store"),  # certificates, redirects, time limits, files
        *("template", "keyfile", "subfile", "attach", "attach-as", "filename", "file_url"),  # local files
    }
)
_HOSTS: Final = frozenset({"host", "hostname"})


class AppriseRefused(Invalid):
    """This Apprise URL is not taken here."""

    code = "APPRISE_REFUSED"


class AppriseSender:
    """Sends messages by Apprise, in threads; `hosts` are those that URLs may name (host or host:port)."""

    def __init__(self, hosts: Collection[str] = (), *, threads: int = 4, timeout_s: float = 20.0) -> None:
        for name in ("apprise", "urllib3", "requests"):  # they log URLs
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        self._hosts = frozenset(host.lower() for host in hosts)
        self._workers = threads
        self._timeout_s = timeout_s
        self._threads: ThreadPoolExecutor | None = None

    async def check(self, target: str) -> None:
        """Raise AppriseRefused for a URL that is not taken."""
        await self._run(_opened, target, self._hosts)

    async def send(self, message: Message) -> Sent:
        """Send the message; see services.alerts.ports for how it may end."""
        try:
            async with asyncio.timeout(self._timeout_s):
                with calling("apprise"):
                    taken = await self._run(_notify, message, self._hosts)
        except TimeoutError:
            raise OutcomeUnknown("the service did not answer in time") from None
        if not taken:
            raise OutcomeUnknown("Apprise says that it failed, not why")
        return Sent("")

    async def close(self) -> None:
        """Give up the threads; another send makes new ones."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)

    async def _run(self, function: Any, *arguments: Any) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="apprise")
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def is_taken(plugin: Any, schema: str) -> bool:
    """Whether a plugin speaks HTTP, over TLS unless it goes to a named host, and is no channel of its own here."""
    module = sys.modules[plugin.__module__]
    secure = plugin.secure_protocol or ()
    tls = schema in ((secure,) if isinstance(secure, str) else secure)
    fits = hasattr(module, "requests") and (tls or names_host(plugin)) and schema not in _OURS | _ANYWHERE
    return fits and bool(plugin.enabled)


def names_host(plugin: Any) -> bool:
    """Whether the plugin goes to a host that its URL names."""
    parts = {**plugin.template_tokens, **plugin.template_args}
    return any(name in _HOSTS or part.get("map_to") in _HOSTS for name, part in parts.items())


def _opened(url: str, hosts: Collection[str]) -> Any:
    """Return Apprise's notifier for a URL; raises AppriseRefused."""
    import apprise  # noqa: PLC0415 - 180 plugins, loaded where such a channel is used
    from apprise.manager_plugins import NotificationManager  # noqa: PLC0415 - as above

    schema, plugins = schema_of(url), NotificationManager()
    if schema not in plugins or not is_taken(plugins[schema], schema):
        raise AppriseRefused(f"the schema {schema} is not taken here")
    arguments = {name.strip().lower() for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)}
    if refused := sorted(arguments & _REFUSED_ARGUMENTS):
        raise AppriseRefused(f"the argument {refused[0]} is not taken here")
    asset = apprise.AppriseAsset(storage_mode="memory", http_redirects=False)
    notifier: Any = apprise.Apprise.instantiate(url, asset=asset)
    if notifier is None:
        raise AppriseRefused("Apprise does not understand this URL")
    if schema == "zulip" and notifier.hostname != notifier.default_hostname:
        raise AppriseRefused("only organizations at Zulip's own host are taken")
    if names_host(plugins[schema]):
        host = str(getattr(notifier, "host", "")).lower()
        if not {host, f"{host}:{getattr(notifier, 'port', None)}"} & set(hosts):
            raise AppriseRefused("this host is not among those that may be named here")
    return notifier


def payload(message: Message) -> dict[str, str]:
    """Return what Apprise is given."""
    shown = rendered("apprise", message)
    return {"title": shown.subject, "body": shown.text.strip()}


def _notify(message: Message, hosts: Collection[str]) -> bool:
    import apprise  # noqa: PLC0415 - as above

    notifier = _opened(message.target, hosts)
    made = payload(message)
    sending = apprise.Apprise(asset=notifier.asset)
    sending.add(notifier)
    longest = max(1, notifier.body_maxlen - len(made["title"]) - 2)  # some put the title before the text
    return bool(sending.notify(title=made["title"], body=made["body"][:longest], body_format="text"))
