"""Templates that administrators write, and what messages look like."""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from litestar import delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from pydantic import BaseModel, ConfigDict, Field

from services.alerts.domain.overrides import ANY, Place, Templated
from services.alerts.domain.sandbox import SOURCE_MAX
from services.alerts.domain.templates import Rendered
from services.alerts.routes.common import HttpRequest, actor_of
from services.alerts.service.previews import Previews
from services.alerts.service.templates import Draft, Templates
from shared.db import Row
from shared.errors import Invalid
from shared.http import Caller, Who
from shared.identity import own
from shared.messaging.door import Door

SHOWN: Final = 200
_LANGUAGES: Final = 3

Kind = Annotated[str | None, QueryParameter(max_length=64)]


class DraftBody(BaseModel):
    """A template: Jinja in the sandbox of docs/mail.md. `mjml` is for mail, and needed there."""

    model_config = ConfigDict(extra="forbid")

    subject: str = Field(min_length=1, max_length=1_000)
    text: str = Field(min_length=1, max_length=SOURCE_MAX)
    mjml: str | None = Field(default=None, max_length=SOURCE_MAX)
    comment: str = Field(default="", max_length=500)


class VersionView(msgspec.Struct, frozen=True):
    """A version of a template. Without a text it took the template back: the packaged one is used.

    `failures` counts the messages that it could not lay out, which the next nearest did.
    """

    channel: str
    kind: str
    language: str
    version: int
    subject: str | None
    text: str | None
    mjml: str | None
    author: str
    comment: str
    created_at: datetime
    failures: int
    last_failure: str | None
    last_failure_at: datetime | None


class RenderedView(msgspec.Struct, frozen=True):
    """A made-up message as a draft lays it out."""

    subject: str
    text: str
    html: str | None


class ShownView(msgspec.Struct, frozen=True):
    """A message on one channel: what laid it out, its parts, and what would be posted."""

    channel: str
    template: str | None
    subject: str
    text: str
    html: str | None
    payload: Any


class PreviewView(msgspec.Struct, frozen=True):
    """What a message of this kind looks like."""

    kind: str
    title: str
    channels: list[ShownView]


def handlers(templates: Templates, previews: Previews, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""
    return [*_reading(templates, previews, door), *_writing(templates, door)]


def _reading(templates: Templates, previews: Previews, door: Door) -> list[HTTPRouteHandler]:
    @get("/api/alerts/{user_id:uuid}/preview", caller=Caller.USER)
    async def preview(
        identity: Who,
        user_id: FromPath[UUID],
        kind: Kind = None,
        alert_id: FromQuery[UUID | None] = None,
        notice_id: FromQuery[UUID | None] = None,
    ) -> PreviewView:
        """Show on every channel an alert or a notice that the user got: by id, else the newest (of a kind)."""
        own(identity, user_id)
        async with door.read() as tx:
            message = await previews.message(tx, user_id, kind=kind, alert_id=alert_id, notice_id=notice_id)
        shown = [
            ShownView(one.channel, one.template, one.subject, one.text, one.html, one.payload)
            for one in await previews.shown(message)
        ]
        return PreviewView(message.kind, message.title, shown)

    @get("/api/alerts/templates", caller=Caller.ADMIN)
    async def list_templates() -> list[VersionView]:
        """Return the newest version of each template that an administrator wrote."""
        async with door.read() as tx:
            return [_view(row) for row in await templates.newest(tx)]

    @get("/api/alerts/templates/{channel:str}/{kind:str}/{language:str}", caller=Caller.ADMIN)
    async def list_versions(
        channel: FromPath[Templated], kind: FromPath[str], language: FromPath[str]
    ) -> list[VersionView]:
        """Return the versions of one, newest first."""
        async with door.read() as tx:
            return [_view(row) for row in await templates.versions((channel, kind, language), SHOWN, tx)]

    return [preview, list_templates, list_versions]


def _writing(templates: Templates, door: Door) -> list[HTTPRouteHandler]:
    @put("/api/alerts/templates/{channel:str}/{kind:str}/{language:str}", caller=Caller.ADMIN)
    async def write_template(  # noqa: PLR0917 - a path of three parts
        request: HttpRequest,
        identity: Who,
        channel: FromPath[Templated],
        kind: FromPath[str],
        language: FromPath[str],
        data: JSONBody[DraftBody],
    ) -> VersionView:
        """Write the next version of a template; `language` is one such as "de", or "any"."""
        actor, place, draft = actor_of(request, identity), _place(channel, kind, language), _draft(data)
        return _view(await door.run(lambda tx: templates.write(actor, place, draft, tx)))

    @post("/api/alerts/templates/{channel:str}/{kind:str}/{language:str}/check", caller=Caller.ADMIN, status_code=200)
    async def check_template(
        channel: FromPath[Templated], kind: FromPath[str], language: FromPath[str], data: JSONBody[DraftBody]
    ) -> RenderedView:
        """Return how a draft lays out a made-up message; nothing is written."""
        made: Rendered = templates.checked(_place(channel, kind, language), _draft(data))
        return RenderedView(made.subject, made.text, made.html)

    @post(
        "/api/alerts/templates/{channel:str}/{kind:str}/{language:str}/revert/{version:int}",
        caller=Caller.ADMIN,
        status_code=200,
    )
    async def revert_template(  # noqa: PLR0917 - as above
        request: HttpRequest,
        identity: Who,
        channel: FromPath[Templated],
        kind: FromPath[str],
        language: FromPath[str],
        version: FromPath[int],
    ) -> VersionView:
        """Write an older version once more as the newest."""
        actor, place = actor_of(request, identity), _place(channel, kind, language)
        return _view(await door.run(lambda tx: templates.revert(actor, place, version, tx)))

    @delete("/api/alerts/templates/{channel:str}/{kind:str}/{language:str}", caller=Caller.ADMIN)
    async def take_back_template(
        request: HttpRequest,
        identity: Who,
        channel: FromPath[Templated],
        kind: FromPath[str],
        language: FromPath[str],
    ) -> None:
        """Use the packaged template again; the versions stay."""
        actor, place = actor_of(request, identity), _place(channel, kind, language)
        await door.run(lambda tx: templates.revert(actor, place, 0, tx))

    return [write_template, check_template, revert_template, take_back_template]


def _place(channel: Templated, kind: str, language: str) -> Place:
    short = language.isascii() and language.isalpha() and language.islower() and len(language) <= _LANGUAGES
    if not (language == ANY or (short and len(language) > 1)):
        raise Invalid('a language is one such as "de", or "any"')
    return channel, kind, language


def _draft(data: DraftBody) -> Draft:
    return Draft(data.subject, data.text, data.mjml, data.comment)


def _view(row: Row) -> VersionView:
    return VersionView(**{name: row[name] for name in VersionView.__struct_fields__})
