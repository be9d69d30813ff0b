"""Discord, by webhook URL.

Discord's webhooks know no idempotency key, so a message whose outcome is unknown is sent again, with a line that
says so: a missed alert is worse than a doubled one. Limits are the documented ones (docs/resources/channel,
"embed limits"; docs/topics/rate-limits): the last blocks of a description that is too long give way to "and N more",
a 429 is obeyed to the millisecond, and an answer that says the bucket is empty asks for the pause before the next one.
Discord bans an address after 10,000 invalid answers in ten minutes, so after half of that nothing is sent for a while;
replicas behind one address share the ban and not the count, so give each its part (`most_invalid`).

What would surprise you: the URL is a secret and httpx logs URLs at INFO, so its logger is raised to WARNING.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import httpx

from services.alerts.adapters.answers import json_of, seconds
from services.alerts.domain.cutting import clip, fit, units
from services.alerts.domain.templates import seen
from services.alerts.domain.text import IMAGE_NAME, Message, fitted
from services.alerts.ports import ChannelGone, Sent
from services.alerts.templates import rendered
from shared.errors import Permanent, Transient
from shared.external import Client
from shared.work import Busy, OutcomeUnknown

CONTENT_MAX: Final = 2_000
TITLE_MAX: Final = 256
DESCRIPTION_MAX: Final = 4_096
ALT_MAX: Final = 1_024
FOOTER_MAX: Final = 2_000  # documented: 2,048
EMBED_MAX: Final = 6_000
INVALID_WINDOW_S: Final = 600.0
MOST_INVALID: Final = 5_000
"""Refusals in that time after which nothing is sent for a while, of all replicas behind one address together."""

LONGEST_WAIT_S: Final = 30 * 86_400.0
"""Longer waits are obeyed as this one: no delivery lives to see its end, and a date so far off need not exist."""

_GONE: Final = {
    401: "Discord refuses the webhook's token",
    403: "Discord forbids this webhook",
    404: "the webhook does not exist any more",
}
_WAIT: Final = 429
_THEIR_FAULT: Final = 500
_REAL: Final = 0x2E7D32
_SIMULATED: Final = 0x9E9E9E


class Discord:
    """Sends messages to webhooks, over pooled connections."""

    def __init__(
        self,
        *,
        connections: int = 32,
        timeout_s: float = 10.0,
        most_invalid: int = MOST_INVALID,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._timeout = httpx.Timeout(timeout_s, pool=30.0)
        self._limits = httpx.Limits(max_connections=connections, keepalive_expiry=60.0)
        self._http: httpx.AsyncClient | None = None
        self._most_invalid = most_invalid
        self._clock = clock
        self._invalid: deque[float] = deque(maxlen=most_invalid)

    async def send(self, message: Message) -> Sent:
        """Post the message; see services.alerts.ports for how it may end."""
        self._stay_below_the_ban()
        try:
            answer = await self._post(fitted(message))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Transient(f"Discord is not reachable: {type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise OutcomeUnknown(f"Discord did not answer: {type(error).__name__}") from None
        if answer.is_success:
            return Sent(str(json_of(answer).get("id", "")), pause_s=_pause_s(answer))
        if answer.status_code == _WAIT or answer.status_code in _GONE:
            self._invalid.append(self._clock())
        raise _refusal(answer)

    async def _post(self, message: Message) -> httpx.Response:
        made = payload(message)
        client, params = self._client(), {"wait": "true"}
        if message.image is None:
            return await client.post(message.target, params=params, json=made)
        made["embeds"][0]["image"] = {"url": f"attachment://{IMAGE_NAME}"}
        alt = clip(str(message.fields.get("image_alt", "")), ALT_MAX)
        made["attachments"] = [{"id": 0, "filename": IMAGE_NAME, **({"description": alt} if alt else {})}]
        files = {"files[0]": (IMAGE_NAME, message.image, "image/png")}
        return await client.post(message.target, params=params, data={"payload_json": json.dumps(made)}, files=files)

    def _stay_below_the_ban(self) -> None:
        since = self._clock() - INVALID_WINDOW_S
        while self._invalid and self._invalid[0] <= since:
            self._invalid.popleft()
        if len(self._invalid) >= self._most_invalid:
            wait_s = self._invalid[0] - since
            raise Busy(
                "too many refusals by Discord: waiting, so as not to be banned", retry_after_s=wait_s, everyone=True
            )

    async def close(self) -> None:
        """Close the connections; another send opens new ones."""
        client, self._http = self._http, None
        if client is not None:
            await client.aclose()

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            headers = {"user-agent": "Openbell (alerts)"}
            self._http = Client("discord", timeout=self._timeout, limits=self._limits, headers=headers)
        return self._http


def payload(message: Message) -> dict[str, Any]:
    """Return the webhook's JSON: the title as content, the rest as one embed; nobody is mentioned."""
    shown = rendered("discord", message)
    title, footer = clip(shown.subject, TITLE_MAX), clip(seen("\n".join(message.notes)), FOOTER_MAX)
    room = min(DESCRIPTION_MAX, EMBED_MAX - units(title) - units(footer))
    return {
        "content": clip(shown.subject, CONTENT_MAX),
        "embeds": [
            {
                "title": title,
                "description": fit(shown.text.strip(), room),
                "footer": {"text": footer},
                "timestamp": message.at.isoformat(),
                "color": _SIMULATED if message.simulated else _REAL,
            }
        ],
        "allowed_mentions": {"parse": []},
    }


def _refusal(answer: httpx.Response) -> Exception:
    status = answer.status_code
    if status == _WAIT:
        body = json_of(answer)
        everyone = bool(body.get("global")) or "via" not in answer.headers  # without: Cloudflare's ban of our address
        wait_s = (
            seconds(body.get("retry_after"), LONGEST_WAIT_S)
            or seconds(answer.headers.get("retry-after"), LONGEST_WAIT_S)
            or 1.0
        )
        return Busy("Discord asks to wait", retry_after_s=wait_s, everyone=everyone)
    if status in _GONE:
        if "code" in json_of(answer):
            return ChannelGone(_GONE[status])
        return Transient(f"somebody between us and Discord answered {status}")  # Discord's own answers have a code
    if status >= _THEIR_FAULT:
        retry_after_s = seconds(answer.headers.get("retry-after"), LONGEST_WAIT_S)
        return Transient(f"Discord answered {status}", retry_after_s=retry_after_s)
    return Permanent(f"Discord refused the message: {status}, code {json_of(answer).get('code', 'none')}")


def _pause_s(answer: httpx.Response) -> float:
    if answer.headers.get("x-ratelimit-remaining") != "0":
        return 0.0
    return seconds(answer.headers.get("x-ratelimit-reset-after"), LONGEST_WAIT_S) or 0.0
