"""What Discord reads as markup is shown as it is written. Pure.

What would surprise you: a URL inside somebody's text is no link, because its colon is escaped. Links of our own are
made by `link`, or stand alone after a label ("Receipt: https://..."), where `line` lets them be.
"""

import re
from typing import Final

_MARKUP: Final = re.compile(r"([\\`*_~|<>\[\]]|(?<=[a-z]):(?=//))", re.IGNORECASE)
_BLOCK: Final = re.compile(r"^(\s*)([#\-+])", re.MULTILINE)
_NUMBERED: Final = re.compile(r"^(\s*[0-9]+)\.", re.MULTILINE)
_MENTION: Final = re.compile(r"@(?=everyone|here|[!&]?[0-9])", re.IGNORECASE)
_SPECIAL: Final = re.compile(r"[\\`*_~|<>\[\]:#\-+@\r]|[0-9]\.")
"""What one of the others may match: of most values there is nothing to escape."""
_LABELLED: Final = re.compile(r"([^:\n]{1,40}): (https://[^\s<>\"`\\]{1,500})")


class Markdown(str):
    """Text that is escaped already."""

    __slots__ = ()


def escape(value: object) -> Markdown:
    """Return a value as Discord shows it letter by letter; `Markdown` stays as it is."""
    if isinstance(value, Markdown):
        return value
    if not _SPECIAL.search(text := str(value)):
        return Markdown(text)
    text = _MARKUP.sub(r"\\\1", text.replace("\r", ""))
    text = _NUMBERED.sub(r"\1\\.", _BLOCK.sub(r"\1\\\2", text))
    return Markdown(_MENTION.sub("@\u200b", text))


def line(value: str) -> Markdown:
    """Return a line escaped, and the link after a label ("Receipt: https://...") as a link."""
    found = labelled(value)
    return Markdown(f"{escape(found[0])}: {link(found[1])}") if found else escape(value)


def labelled(value: str) -> tuple[str, str] | None:
    """Return the label and the link of a line that is nothing else; None for any other line."""
    found = _LABELLED.fullmatch(value)
    return (found[1], found[2]) if found else None


def link(url: str) -> Markdown:
    """Return a link of our own, shown without a preview."""
    return Markdown(f"<{url}>")
