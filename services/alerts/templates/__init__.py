"""The templates that come with Openbell: `<channel>/<kind>.<version>.toml`, and partials that they share.

Channels without a folder use `plain`. A kind without a template of its own is laid out by `message`. The highest
version is the one in use; older ones stay in their files, for deliveries that began with them.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from services.alerts.domain.overrides import ANY_KIND
from services.alerts.domain.templates import Rendered, Source, render
from services.alerts.domain.text import Message, context
from services.alerts.domain.words import DEFAULT, Words

PLAIN: Final = "plain"
_FOLDER: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Packaged:
    """All of them: versions by (channel, kind), oldest first, and partials by name."""

    sources: Mapping[tuple[str, str], tuple[Source, ...]]
    partials: Mapping[str, str]

    def newest(self, channel: str, kind: str) -> Source | None:
        """Return the template of a kind that is in use on a channel; None where the kind has none of its own."""
        found = self.sources.get((channel, kind)) or self.sources.get((PLAIN, kind))
        return found[-1] if found else None

    def used(self, channel: str, kind: str) -> Source:
        """Return what lays out messages of a kind on a channel."""
        found = self.newest(channel, kind) or self.newest(channel, ANY_KIND)
        assert found is not None  # noqa: S101 - plain/message is there, and a test looks at it
        return found


@lru_cache(maxsize=1)
def packaged() -> Packaged:
    """Return the templates, read once."""
    found: dict[tuple[str, str], list[tuple[int, Source]]] = {}
    for path in sorted(_FOLDER.glob("*/*.toml")):
        kind, _, number = path.stem.rpartition(".")
        fields = tomllib.loads(path.read_text())
        source = Source(path.parent.name, kind, path.stem, fields["subject"], fields["text"], fields.get("mjml"))
        found.setdefault((source.channel, kind), []).append((int(number), source))
    sources = {key: tuple(source for _, source in sorted(some, key=lambda one: one[0])) for key, some in found.items()}
    partials = {path.name: path.read_text() for path in sorted(_FOLDER.glob("*/*.mjml"))}
    return Packaged(sources, partials)


def render_packaged(channel: str, kind: str, context: Mapping[str, Any], words: Words = DEFAULT) -> Rendered:
    """Return a message as the newest packaged template of its kind makes it."""
    return render(packaged().used(channel, kind), context, words, packaged().partials)


def rendered(channel: str, message: Message) -> Rendered:
    """Return how a message is laid out: as it was already, else by what is packaged."""
    return message.rendered or render_packaged(channel, message.kind, context(message), message.words)
