"""Templates: what a message of a kind says on a channel, rendered in a sandbox (domain/sandbox.py).

A template has a subject, a text, and for mail MJML: Jinja fills it, then MRML makes HTML of it. A value is escaped for
where it goes: as HTML in mail, as Discord's markdown there, not at all in plain text, and a subject is one line. A
template sees the message's own words and nothing else; a name that is not there is an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import mrml
from jinja2 import TemplateError, TemplateSyntaxError

from services.alerts.domain.cutting import clip
from services.alerts.domain.sandbox import Budget, Spent, compiled
from services.alerts.domain.words import DEFAULT, Words
from shared.errors import Invalid

SUBJECT_MAX: Final = 250
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
TEXT_MAX: Final = 100_000
"""Characters of a rendered text, which is cut there; MJML with more than five times as many is refused."""


class TemplateRefused(Invalid):
    """This template cannot be rendered."""

    code = "TEMPLATE_REFUSED"


@dataclass(frozen=True, slots=True)
class Source:
    """One version of a template. `mjml` is for mail."""

    channel: str
    kind: str
    version: str
    subject: str
    text: str
    mjml: str | None = None


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a reader gets. `version` names the template that made it: "email/alert.1"."""

    version: str
    subject: str
    text: str
    html: str | None = None


def render(
    source: Source, context: Mapping[str, Any], words: Words = DEFAULT, partials: Mapping[str, str] | None = None
) -> Rendered:
    """Return a template filled with a message's words. Raises TemplateRefused."""
    made: dict[str, str] = {}
    for part, (style, template) in parts(source).items():
        try:
            made[part] = _filled(style, template, context, words, partials)
            if part == "mjml":
                made[part] = _html(made[part])
        except TemplateRefused as error:
            raise TemplateRefused(f"{part}: {error.message}", **{**error.details, "part": part}) from error
    text = clip(made["text"].strip(), TEXT_MAX) + "\n"
    return Rendered(f"{source.channel}/{source.version}", one_line(made["subject"]), text, made.get("mjml"))


def parts(source: Source) -> dict[str, tuple[str, str]]:
    """Return a template's parts by name, each with how its values are escaped: (style, template)."""
    style = "markdown" if source.channel == "discord" else "plain"
    found = {"subject": (style, source.subject), "text": (style, source.text)}
    return found if source.mjml is None else found | {"mjml": ("html", source.mjml)}


def one_line(text: str) -> str:
    """Return a subject: one line without control characters, of `SUBJECT_MAX` at most."""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return line if len(line) <= SUBJECT_MAX else line[: SUBJECT_MAX - 1] + "…"


def _html(mjml: str) -> str:
    if len(mjml) > 5 * TEXT_MAX:
        raise _refused(f"the MJML has more than {5 * TEXT_MAX} characters", None)
    try:
        output = mrml.to_html(_NO_XML.sub(" ", mjml))  # a venue's words may hold what XML may not
    except OSError as error:  # what MRML raises for MJML that it cannot read
        raise TemplateRefused(f"this is not MJML: {error}", line=None, reason=str(error)) from error
    return output.content


def _filled(
    style: str, template: str, context: Mapping[str, Any], words: Words, partials: Mapping[str, str] | None
) -> str:
    names = tuple(sorted((partials or {}).items()))
    try:
        filled = compiled(style, template, names).render({**context, "_words": words, "_budget": Budget()})
    except TemplateError as error:
        line = error.lineno if isinstance(error, TemplateSyntaxError) else _line(error)
        raise _refused(error.message or type(error).__name__, line) from error
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, Spent) as error:
        raise _refused(str(error), _line(error)) from error
    return filled


def _refused(reason: str, line: int | None) -> TemplateRefused:
    place = f" in line {line}" if line is not None else ""
    return TemplateRefused(f"the template cannot be rendered{place}: {reason}", line=line, reason=reason)


def _line(error: BaseException) -> int | None:
    """Return the line of a template in which something was raised, as jinja2 wrote it into the traceback."""
    found, at = None, error.__traceback__
    while at is not None:
        found = at.tb_lineno if at.tb_frame.f_code.co_filename == "<template>" else found
        at = at.tb_next
    return found
