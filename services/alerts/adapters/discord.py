"""Discord, by webhook URL.

Discord's webhooks know no idempotency key, so a message whose outcome is unknown is sent again, with a line that
says so: a missed alert is worse than a doubled one. Limits are the documented ones (docs/resources/channel,
"embed limits"; docs/topics/rate-limits): the last blocks of a description that is too long give way to "and N more",
a 429 is obeyed to the millisecond, and an answer that says the bucket is empty asks for the pause before the next one.
Discord bans an address after 10,000 invalid answers in ten minutes, so after half of that nothing is sent for a while;
replicas behind one address share the ban and not the count, so give each its part (`most_invalid`).

What would surprise you: `Posting` is imported with the first message, for an idle service does without its 8 MB.
"""

import json
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from services.alerts.adapters.answers import seconds
from services.alerts.domain.cutting import clip, fit, units
from services.alerts.domain.text import IMAGE_NAME, Message, fitted
from services.alerts.ports import ChannelGone, Sent
from services.alerts.templates import rendered
from shared.errors import Permanent, Transient
from shared.work import Busy

if TYPE_CHECKING:
    from services.alerts.adapters.posting import Answer, Posting

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

_OK: Final = range(200, 300)
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
        self._connections = connections
        self._timeout_s = timeout_s
        self._posting: Posting | None = None
        self._most_invalid = most_invalid
        self._clock = clock
        self._invalid: deque[float] = deque(maxlen=most_invalid)

    async def send(self, message: Message) -> Sent:
        """Post the message; see services.alerts.ports for how it may end."""
        self._stay_below_the_ban()
        answer = await self._post(fitted(message))
        if answer.status in _OK:
            return Sent(str(answer.told.get("id", "")), pause_s=_pause_s(answer))
        if answer.status == _WAIT or answer.status in _GONE:
            self._invalid.append(self._clock())
        raise _refusal(answer)

    async def _post(self, message: Message) -> "Answer":
        if self._posting is None:
            from services.alerts.adapters.posting import Posting  # noqa: PLC0415 - memory, see above

            self._posting = Posting("Discord", connections=self._connections, timeout_s=self._timeout_s)
        made, params = payload(message), {"wait": "true"}
        if message.image is None:
            return await self._posting.post(message.target, params, json=made)
        made["embeds"][0]["image"] = {"url": f"attachment://{IMAGE_NAME}"}
        alt = clip(str(message.fields.get("image_alt", "")), ALT_MAX)
        made["attachments"] = [{"id": 0, "filename": IMAGE_NAME, **({"description": alt} if alt else {})}]
        file = (IMAGE_NAME, message.image, "image/png")
        return await self._posting.post(message.target, params, form={"payload_json": json.dumps(made)}, file=file)

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
        posting, self._posting = self._posting, None
        if posting is not None:
            await posting.close()


def payload(message: Message) -> dict[str, Any]:
    """Return the webhook's JSON: the title as content, the rest as one embed; nobody is mentioned."""
    shown = rendered("discord", message)
    title, footer = clip(shown.subject, TITLE_MAX), clip("\n".join(message.notes), FOOTER_MAX)
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


def _refusal(answer: "Answer") -> Exception:
    status = answer.status
    if status == _WAIT:
        body = answer.told
        everyone = bool(body.get("global")) or "via" not in answer.headers  # without: Cloudflare's ban of our address
        wait_s = (
            seconds(body.get("retry_after"), LONGEST_WAIT_S)
            or seconds(answer.headers.get("retry-after"), LONGEST_WAIT_S)
            or 1.0
        )
        return Busy("Discord asks to wait", retry_after_s=wait_s, everyone=everyone)
    if status in _GONE:
        if "code" in answer.told:
            return ChannelGone(_GONE[status])
        return Transient(f"somebody between us and Discord answered {status}")  # Discord's own answers have a code
    if status >= _THEIR_FAULT:
        retry_after_s = seconds(answer.headers.get("retry-after"), LONGEST_WAIT_S)
        return Transient(f"Discord answered {status}", retry_after_s=retry_after_s)
    return Permanent(f"Discord refused the message: {status}, code {answer.told.get('code', 'none')}")


def _pause_s(answer: "Answer") -> float:
    if answer.headers.get("x-ratelimit-remaining") != "0":
        return 0.0
    return seconds(answer.headers.get("x-ratelimit-reset-after"), LONGEST_WAIT_S) or 0.0
