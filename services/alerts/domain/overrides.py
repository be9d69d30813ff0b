"""Templates that an administrator writes in the place of packaged ones, and what is asked of them. Pure.

One is for a channel, a kind and a language; ANY is every language. The nearest one is used: of the kind in the reader's
language, of the kind in any, the packaged one of the kind, and so on for `message`, which lays out all other kinds.

What would surprise you: a template is rendered when it is written, for made-up messages with much and with nothing in
them, for only then a name is missed that stands behind a dot or in a branch.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, Literal, get_args

from jinja2 import TemplateSyntaxError, nodes

from services.alerts.domain.cutting import units
from services.alerts.domain.sandbox import compiled, environment
from services.alerts.domain.templates import Rendered, Source, TemplateRefused, parts, render
from services.alerts.domain.words import DEFAULT, Words
from shared.contracts.alerts import Channel

ANY: Final = "any"
ANY_KIND: Final = "message"
Templated = Literal["discord", "email", "webpush", "fcm", "apprise"]
"""Channels whose messages are laid out; a webhook gets the facts."""
LONGEST: Final[Mapping[str, tuple[int, int]]] = {
    "discord": (250, 4_096),
    "email": (250, 100_000),
    "webpush": (250, 3_000),
    "fcm": (250, 3_000),
    "apprise": (250, 20_000),
}
"""UTF-16 units of subject and text; a channel cuts what is longer, which is for messages, not for templates."""
KINDS: Final = frozenset(
    {
        *("alert", "digest", "rule", "test", ANY_KIND),
        *("receipt", "renewed", "payment_action_required", "payment_failed", "refunded", "dispute_opened"),
        *("dispute_won", "dispute_lost", "trial_ending", "card_expiring", "renewal_due"),
        *("order_filled", "order_part_filled", "order_rejected", "order_flagged", "positions_drifted"),
    }
)
"""Kinds that have a template; the mail that confirms an address is not for changing."""

Place = tuple[str, str, str]
"""(channel, kind, language)."""
_COMMON: Final = frozenset(
    {*("kind", "title", "lines", "notes", "simulated", "at"), *("unsubscribe", "page", "image", "image_alt")}
)
_OF_KIND: Final[Mapping[str, frozenset[str]]] = {
    "alert": frozenset({"symbol", "more", "contracts"}),
    "digest": frozenset({"sections"}),
}
_AT: Final = datetime(2025, 6, 2, 14, 30, tzinfo=UTC)


def candidates(
    channel: Channel, kind: str, words: Words, written: Mapping[Place, Source], packaged: Sequence[Source | None]
) -> list[Source]:
    """Return what may lay a message out, nearest first. `packaged` is that of the kind and that of any kind."""
    language = language_of(words)
    found: list[Source | None] = []
    for one, ours in zip((kind, ANY_KIND), packaged, strict=True):
        found += [written.get((channel, one, language)), written.get((channel, one, ANY)), ours]
    return [source for source in found if source is not None]


def language_of(words: Words) -> str:
    """Return the language of a locale: "de" of "de_DE"."""
    return words.locale.replace("-", "_").partition("_")[0].lower()


def check(source: Source, partials: Mapping[str, str]) -> Rendered:
    """Return how a template lays out a made-up message. Raises TemplateRefused with part, line and reason."""
    if source.channel not in get_args(Templated) or source.kind not in KINDS:
        raise TemplateRefused(f"there is no template for {source.kind} on {source.channel}", kinds=sorted(KINDS))
    if (source.mjml is None) == (source.channel == "email"):
        raise TemplateRefused("a mail has MJML besides its text, and nothing else has", part="mjml")
    _check_names(source, partials)
    shown = [render(source, one, words, partials) for one in samples(source) for words in (DEFAULT, Words("de_DE"))]
    for part, longest, text in zip(
        ("subject", "text"), LONGEST[source.channel], (shown[0].subject, shown[0].text), strict=True
    ):
        if units(text.strip()) > longest or text.endswith("…"):
            reason = f"a made-up message makes it longer than the {longest} characters that the channel takes"
            raise TemplateRefused(f"{part}: {reason}", part=part, line=None, reason=reason)
    return shown[0]


def _check_names(source: Source, partials: Mapping[str, str]) -> None:
    """Refuse a name that no message of the kind has, whether it would be used or not, and what cannot be read."""
    known = _COMMON | _OF_KIND.get(source.kind, frozenset())
    names = tuple(sorted(partials.items()))
    for part, (style, template) in parts(source).items():
        try:
            compiled(style, template, names)
            tree = environment(style, names).parse(template)
        except TemplateSyntaxError as error:
            raise _refused(part, error.lineno, error.message or "it cannot be read") from error
        except RecursionError as error:
            raise _refused(part, None, "it is nested too deeply") from error
        ours = {one.name for one in tree.find_all(nodes.Name) if one.ctx == "store"} | {"loop"}
        for one in tree.find_all(nodes.Name):
            if one.ctx == "load" and one.name not in known | ours:
                raise _refused(part, one.lineno, f"there is no {one.name}: there are {', '.join(sorted(known))}")


def _refused(part: str, line: int | None, reason: str) -> TemplateRefused:
    place = "" if line is None else f" in line {line}"
    return TemplateRefused(f"{part}{place}: {reason}", part=part, line=line, reason=reason)


def samples(source: Source) -> list[dict[str, Any]]:
    """Return what a template sees of made-up messages: one with all there may be, and one with as little."""
    mail = source.channel == "email"
    words: dict[str, Any] = {
        "kind": source.kind,
        "title": "AAPL: 3 unusual contracts, score 80",
        "lines": ("First line.", "Receipt: https://pay.example/r", "<b> & @everyone `x` *y*"),
        "notes": ("Rule watchlist.",),
        "simulated": True,
        "at": _AT,
        "unsubscribe": "https://openbell.example/links/unsubscribe?token=..." if mail else None,
        "page": "https://openbell.example/app/alerts/1",
        "image": "cid:chart.png" if mail else None,
        "image_alt": "Quotes of the session",
    }
    bare: dict[str, Any] = {"lines": (), "notes": (), "simulated": False, "page": None, "image": None}
    more, less = _fields(source.kind)
    return [words | more, words | bare | {"unsubscribe": None} | less]


def _fields(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if kind == "digest":
        section = {"title": "Top alerts", "lines": ["AAPL, score 80"], "simulated": False, "shows": None}
        return {"sections": [section]}, {"sections": []}
    if kind != "alert":
        return {}, {}
    contract = {
        "right": "call",
        "expiration": date(2025, 6, 20),
        "strike": Decimal("200.00"),
        "score": 80,
        "volume": 5_000,
        "open_interest": 400,
        "premium_usd": Decimal(1_250_000),
        "side": "at the ask",
    }
    plain = {**contract, "side": None, "right": "put"}
    return (
        {"symbol": "AAPL", "more": 2, "contracts": [contract, plain]},
        {"symbol": "AAPL", "more": 0, "contracts": [plain]},
    )
