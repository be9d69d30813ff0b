"""What fires for a user, as far as their inhibitions ask. They stand in their preferences (store/preferences.py)."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from services.alerts.domain.routing import ACTIVITY, Firing, Inhibition

FIRING: Final = f"""
    case when jsonb_array_length(p.inhibitions) > 0 then (select jsonb_agg(to_jsonb(f)) from (
        select n.kind, n.symbol, n.account_id, max(n.created_at) as at from notices n
        where n.user_id = p.user_id and n.acknowledged_at is null
          and n.created_at > cast(:now as timestamptz) - interval '1 day'
          and p.inhibitions @> jsonb_build_array(jsonb_build_object('source', n.kind))
        group by n.kind, n.symbol, n.account_id
        union all
        select '{ACTIVITY}', a.symbol, null, max(a.updated_at) from alerts a
        where a.user_id = p.user_id and a.acknowledged_at is null
          and a.created_at > cast(:now as timestamptz) - interval '3 days'
          and a.updated_at > cast(:now as timestamptz) - interval '1 day'
          and p.inhibitions @> '[{{"source": "{ACTIVITY}"}}]'
        group by a.symbol) f) end"""  # noqa: S608 - our own word
"""An expression: what may hold something back for the user of some preferences (`p`) at `:now`, else null.

A day is the longest that something fires, and an alert changes for a session's length.
"""


def inhibitions_of(said: Sequence[dict[str, Any]] | None) -> tuple[Inhibition, ...]:
    """Return the inhibitions of a row of preferences."""
    return tuple(Inhibition(one["source"], one["target"], tuple(one["equal"]), one["minutes"]) for one in said or ())


def firing_of(found: Sequence[dict[str, Any]] | None) -> tuple[Firing, ...]:
    """Return what fires, of rows that were read as JSON."""
    return tuple(
        Firing(
            one["kind"],
            one["symbol"],
            UUID(one["account_id"]) if one["account_id"] else None,
            datetime.fromisoformat(one["at"]),
        )
        for one in found or ()
    )
