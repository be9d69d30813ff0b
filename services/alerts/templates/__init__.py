"""The templates that come with Openbell: `<channel>/<kind>.<version>.toml`, and partials that they share.

A kind without a template of its own is laid out by `message`. The highest version is the one in use; older ones stay
in their files, for deliveries that began with them.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from services.alerts.domain.templates import Rendered, Source, render
from services.alerts.domain.words import DEFAULT, Words

ANY_KIND: Final = "message"
_FOLDER: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Packaged:
    """All of them: versions by (channel, kind), oldest first, and partials by name."""

    sources: Mapping[tuple[str, str], tuple[Source, ...]]
    partials: Mapping[str, str]

    def newest(self, channel: str, kind: str) -> Source | None:
        """Return the template in use; None for a channel that has none, where messages go as they are."""
        found = self.sources.get((channel, kind)) or self.sources.get((channel, ANY_KIND))
        return found[-1] if found else None


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


def render_packaged(channel: str, kind: str, context: Mapping[str, Any], words: Words = DEFAULT) -> Rendered | None:
    """Return a message as the newest packaged template of its kind makes it; None where the channel has none."""
    source = packaged().newest(channel, kind)
    return render(source, context, words, packaged().partials) if source is not None else None
