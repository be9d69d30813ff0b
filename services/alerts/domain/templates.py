"""Templates: what a message of a kind says on a channel, rendered in a sandbox.

A template has a subject, a text, and for mail MJML: Jinja fills it, then MRML makes HTML of it. A value is escaped for
where it goes: as HTML in mail, as Discord's markdown there, not at all in plain text, and a subject is one line. A
template sees the message's own words and nothing else; a name that is not there is an error.

What would surprise you: nothing can be called in a template and only the filters below exist, so that one that an
administrator writes can neither reach out nor swell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

import mrml
from jinja2 import DictLoader, StrictUndefined, TemplateError, pass_context
from jinja2.runtime import BlockReference, Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.alerts.domain import markdown
from services.alerts.domain.cutting import clip
from services.alerts.domain.words import DEFAULT, Words
from shared.errors import Invalid

SUBJECT_MAX: Final = 250
TEXT_MAX: Final = 100_000
"""Characters of a rendered text, which is cut there; MJML with more than five times as many is refused."""
_ARITHMETIC: Final = frozenset({"*", "**", "%", "+", "-", "/", "//"})


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
    style = "markdown" if source.channel == "discord" else "plain"
    subject = _filled(style, source.subject, context, words, partials)
    text = clip(_filled(style, source.text, context, words, partials).strip(), TEXT_MAX) + "\n"
    html = None
    if source.mjml is not None:
        html = _html(_filled("html", source.mjml, context, words, partials))
    return Rendered(f"{source.channel}/{source.version}", one_line(subject), text, html)


def one_line(text: str) -> str:
    """Return a subject: one line without control characters, of `SUBJECT_MAX` at most."""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return line if len(line) <= SUBJECT_MAX else line[: SUBJECT_MAX - 1] + "…"


def _html(mjml: str) -> str:
    if len(mjml) > 5 * TEXT_MAX:
        raise TemplateRefused(f"the MJML has more than {5 * TEXT_MAX} characters")
    try:
        output = mrml.to_html(mjml)
    except OSError as error:  # what MRML raises for MJML that it cannot read
        raise TemplateRefused(f"this is not MJML: {error}") from error
    return output.content


def _filled(
    style: str, template: str, context: Mapping[str, Any], words: Words, partials: Mapping[str, str] | None
) -> str:
    names = tuple(sorted((partials or {}).items()))
    try:
        return _compiled(style, template, names).render({**context, "_words": words})
    except TemplateError as error:
        place = f" in line {error.lineno}" if getattr(error, "lineno", None) else ""  # pyright: ignore[reportAttributeAccessIssue] - only of a syntax error
        raise TemplateRefused(f"the template cannot be rendered{place}: {error.message}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        raise TemplateRefused(f"the template cannot be rendered: {error}") from error


@lru_cache(maxsize=500)
def _compiled(style: str, template: str, partials: tuple[tuple[str, str], ...]) -> Any:
    return _environment(style, partials).from_string(template)


@lru_cache(maxsize=20)
def _environment(style: str, partials: tuple[tuple[str, str], ...]) -> "_Sandbox":
    made = _Sandbox(
        loader=DictLoader(dict(partials)),
        autoescape=style == "html",
        undefined=StrictUndefined,
        finalize=markdown.escape if style == "markdown" else None,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.clear()
    kept = {name: made.filters[name] for name in ("default", "first", "join", "last", "length", "lower", "upper")}
    made.filters = {**kept, **_FILTERS}
    return made


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = _ARITHMETIC

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return not callable(value) and super().is_safe_attribute(obj, attr, value)

    def is_safe_callable(self, obj: Any) -> bool:
        return isinstance(obj, BlockReference)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, (int, float, Decimal)) and isinstance(right, (int, float, Decimal)) and operator != "**":
            return super().call_binop(context, operator, left, right)
        raise TypeError(f"{operator} is for numbers")


@pass_context
def _number(context: Context, value: Decimal | float) -> str:
    return _words(context).number(value)


@pass_context
def _money(context: Context, value: Decimal, currency: str) -> str:
    return _words(context).money(value, currency)


@pass_context
def _dollars(context: Context, value: Decimal) -> str:
    return _words(context).dollars(value)


@pass_context
def _day(context: Context, value: date) -> str:
    return _words(context).day(value)


@pass_context
def _clock(context: Context, value: datetime) -> str:
    return _words(context).clock(value)


def _words(context: Context) -> Words:
    words = context["_words"]
    assert isinstance(words, Words)  # noqa: S101 - render puts it there
    return words


_FILTERS: Final[dict[str, Any]] = {
    "number": _number,
    "money": _money,
    "dollars": _dollars,
    "day": _day,
    "clock": _clock,
    "line": markdown.line,
    "link": markdown.link,
    "labelled": markdown.labelled,
}
