"""Posts to one system over pooled connections, many a second.

What would surprise you: this is aiohttp, not httpx, which looks through all connections of its pool for each request.
With 32 of them a post takes a tenth of the processor time (docs/adr/0011).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx

from services.alerts.adapters.answers import object_of
from shared.errors import Transient
from shared.external import calling
from shared.work import OutcomeUnknown


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `told` is its JSON object, empty where there is none."""

    status: int
    headers: Mapping[str, str]
    told: Mapping[str, Any]


class Posting:
    """Posts to the system that `name` names; follows no redirect and asks no proxy of the environment."""

    def __init__(self, name: str, *, connections: int, timeout_s: float) -> None:
        self._name = name
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections,
                keepalive_timeout=60.0,
                resolver=aiohttp.ThreadedResolver(),  # as the system does
                ssl=httpx.create_ssl_context(),  # the same authorities as everywhere else
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(sock_connect=timeout_s, sock_read=timeout_s, connect=30.0, total=60.0),
            headers={"user-agent": "Openbell (alerts)"},
        )

    async def post(
        self,
        url: str,
        params: Mapping[str, str],
        *,
        json: Any = None,
        form: Mapping[str, str] | None = None,
        file: tuple[str, bytes, str] | None = None,
    ) -> Answer:
        """Post JSON, or a form, with a file (name, content, type) if there is one.

        Raises Transient when nothing was sent, OutcomeUnknown when nobody knows; neither holds the URL.
        """
        body: dict[str, Any] = {"json": json} if form is None else {"data": _form(form, file)}
        try:
            with calling(self._name.lower()) as call:
                async with self._session.post(url, params=params, allow_redirects=False, **body) as answer:
                    call.status = answer.status
                    return Answer(answer.status, answer.headers, object_of(await answer.read()))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Transient(f"{self._name} is not reachable: {type(error).__name__}") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OutcomeUnknown(f"{self._name} did not answer: {type(error).__name__}") from None

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()


def _form(fields: Mapping[str, str], file: tuple[str, bytes, str] | None) -> aiohttp.FormData:
    form = aiohttp.FormData(fields)
    if file is not None:
        name, content, content_type = file
        form.add_field("files[0]", content, filename=name, content_type=content_type)
    return form
