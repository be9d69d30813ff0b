"""Messages of what a user is told: an alert or a notice as its row has it, before it is laid out."""

from services.alerts.domain.charts import Picture
from services.alerts.domain.text import REPEAT_NOTE, Message, body, fields, notes
from services.alerts.store.alerts import lines_of
from services.alerts.store.preferences import words_of
from shared.db import Row


def of_notice(found: Row, link: str | None) -> Message:
    """Return a notice's message; a digest is laid out by its sections."""
    picture: Picture | None = found.get("picture")
    sections = found["sections"]
    fields = {} if sections is None else {"sections": sections}
    return Message(
        delivery_id=found["id"],
        target=found["target"],
        title=found["title"],
        lines=tuple(found["lines"]),
        notes=(*_escalation(found), *((REPEAT_NOTE,) if found["uncertain"] else ())),
        simulated=any(one["simulated"] for one in sections or ()),
        at=found["at"],
        user_id=found["user_id"],
        kind=found["kind"] if sections is None else "digest",
        words=words_of(found),
        fields=fields | ({"image_alt": picture.alt} if picture else {}),
        link=link,
        image=picture.png if picture else None,
    )


def of_alert(found: Row, link: str | None, *, repeat: bool) -> Message:
    """Return an alert's message; `repeat` says that it may have come before."""
    best = lines_of(found)
    words = words_of(found)
    picture: Picture | None = found.get("picture")
    return Message(
        delivery_id=found["id"],
        target=found["target"],
        title=found["title"],
        lines=body(found["symbol"], best, found["contract_count"], words),
        notes=_escalation(found)
        + notes(
            rule_name=found["rule_name"],
            session=found["session"],
            as_of=found["as_of"],
            delay_s=found["delay_s"],
            source=found["source"],
            premium_usd=found["premium_usd"],
            simulated=found["simulated"],
            repeat=repeat,
            words=words,
        ),
        simulated=found["simulated"],
        at=found["as_of"],
        user_id=found["user_id"],
        kind="alert",
        words=words,
        fields=fields(found["symbol"], best, found["contract_count"]) | ({"image_alt": picture.alt} if picture else {}),
        link=link,
        image=picture.png if picture else None,
    )


def _escalation(found: Row) -> tuple[str, ...]:
    """Return why it is told here, of what was told elsewhere before."""
    return (f"Escalated: {found['because']}.",) if found["escalated"] else ()
