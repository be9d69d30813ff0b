"""Templates that administrators wrote: every version stays, the highest of a place is the one in use."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text

from services.alerts.domain.overrides import Place
from services.alerts.domain.templates import Source
from shared.db import Row, Tx

_PLACE: Final = "channel = :channel and kind = :kind and language = :language"
_LOCK: Final = text("select pg_advisory_xact_lock(hashtextextended('alerts/templates', 0))")
_NEWEST: Final = """
    select distinct on (channel, kind, language) * from templates order by channel, kind, language, version desc"""
_USED: Final = text(f"select * from ({_NEWEST}) newest where text is not null")  # noqa: S608 - our own words
_LIST: Final = text(_NEWEST)
_VERSIONS: Final = text(f"select * from templates where {_PLACE} order by version desc limit :limit")  # noqa: S608 - as above
_ONE: Final = text(f"select * from templates where {_PLACE} and version = :version")  # noqa: S608 - as above
_ADD: Final = text(f"""
    insert into templates (channel, kind, language, version, subject, text, mjml, author, comment, created_at)
    select :channel, :kind, :language, coalesce(max(version), 0) + 1, cast(:subject as text), cast(:text as text),
        cast(:mjml as text), :author, :comment, cast(:now as timestamptz)
    from templates where {_PLACE} returning *""")  # noqa: S608 - as above
_FAILED: Final = text(f"""
    update templates set failures = failures + :failures, last_failure = :reason, last_failure_at = :now
    where {_PLACE} and version = :version""")  # noqa: S608 - as above


class TemplateStore:
    """Reads and writes templates, always inside the caller's transaction."""

    async def used(self, tx: Tx) -> dict[Place, Source]:
        """Return the templates in use, by place."""
        return {(row["channel"], row["kind"], row["language"]): source_of(row) for row in await tx.fetch(_USED)}

    async def newest(self, tx: Tx) -> list[Row]:
        """Return the newest version of each place, those that took a template back as well."""
        return await tx.fetch(_LIST)

    async def versions(self, tx: Tx, place: Place, limit: int) -> list[Row]:
        """Return the versions of a place, newest first."""
        return await tx.fetch(_VERSIONS, limit=limit, **_of(place))

    async def one(self, tx: Tx, place: Place, version: int) -> Row | None:
        """Return one version."""
        return await tx.fetchrow(_ONE, version=version, **_of(place))

    async def add(self, tx: Tx, place: Place, fields: Mapping[str, Any], now: datetime) -> Row:
        """Write the next version of a place; others that write wait."""
        await tx.execute(_LOCK)
        row = await tx.fetchrow(_ADD, now=now, **_of(place), **fields)
        assert row is not None  # noqa: S101 - it was inserted
        return row

    async def failed(self, tx: Tx, source: Source, place: Place, failures: int, reason: str, now: datetime) -> None:  # noqa: PLR0917 - what there is to note
        """Note that a version could not be rendered, so many times more."""
        version = int(source.version.rpartition(".")[2])
        await tx.execute(_FAILED, version=version, failures=failures, reason=reason, now=now, **_of(place))


def source_of(row: Row) -> Source:
    """Return the template that a row holds, named "alert@de.7"."""
    version = f"{row['kind']}@{row['language']}.{row['version']}"
    return Source(row["channel"], row["kind"], version, row["subject"], row["text"], row["mjml"])


def _of(place: Place) -> dict[str, str]:
    channel, kind, language = place
    return {"channel": channel, "kind": kind, "language": language}
