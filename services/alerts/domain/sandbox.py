"""What a template may do: read the words of its message, loop over them, and no more than that.

A template is read into a tree of which only the kinds of nodes listed here are taken: nothing is called, defined,
captured or included from elsewhere. What is left costs: each round of a loop by the size of its body, each value by its
length, out of `SPEND_MAX`, so that a template that an administrator wrote can neither reach out, swell nor run on.

What would surprise you: `~` joins into texts of `JOINED_MAX` characters at most, because `{% set x = x ~ x %}` doubles
with each line, and a list is not printed, because it would be as long as what is in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, cast

from jinja2 import DictLoader, StrictUndefined, TemplateSyntaxError, nodes, pass_context
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from services.alerts.domain import markdown
from services.alerts.domain.words import Words

SPEND_MAX: Final = 1_000_000
"""About as many characters, or as many small steps."""
SOURCE_MAX: Final = 50_000
"""Characters of a template's part."""
JOINED_MAX: Final = 10_000
_ROUND: Final = 20
_STEP: Final = 5
"""What a round of a loop costs, and each node in it."""

Partials = tuple[tuple[str, str], ...]
"""Templates that others extend: (name, source), sorted by name."""

_ARITHMETIC: Final = frozenset({"*", "**", "%", "+", "-", "/", "//"})
_TAKEN: Final = (
    *(nodes.Output, nodes.TemplateData, nodes.Extends, nodes.Block, nodes.For, nodes.If, nodes.Assign),
    *(nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Keyword),
    *(nodes.Filter, nodes.Test, nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.Concat, nodes.And, nodes.Or),
    *(nodes.Not, nodes.Neg, nodes.Pos, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod),
)
_NOTHING: Final = markdown.Markdown()


class Spent(Exception):
    """This template does too much: it loops too often or makes too much text."""


@dataclass(slots=True)
class Budget:
    """What a template may still spend."""

    left: int = SPEND_MAX

    def spend(self, much: int) -> None:
        """Take so much away; raises Spent."""
        self.left -= much
        if self.left < 0:
            raise Spent((Spent.__doc__ or "").strip())


@lru_cache(maxsize=500)
def compiled(style: str, template: str, partials: Partials) -> Any:
    """Return a template ready to be rendered with "_words" and "_budget" besides its own names.

    Raises jinja2's TemplateSyntaxError, which knows the line.
    """
    if len(template) > SOURCE_MAX:
        raise TemplateSyntaxError(f"it has more than {SOURCE_MAX} characters", 1)
    return environment(style, partials).from_string(template)


@lru_cache(maxsize=20)
def environment(style: str, partials: Partials) -> "Sandbox":
    """Return what reads templates of a style: "html", "markdown" or "plain"."""
    made = Sandbox(
        loader=DictLoader(dict(partials)),
        autoescape=style == "html",
        undefined=StrictUndefined,
        finalize=_shown_as_markdown if style == "markdown" else _shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.clear()
    kept = {name: made.filters[name] for name in ("default", "first", "last", "length")}
    made.filters = {**kept, **_FILTERS}
    return made


class Sandbox(ImmutableSandboxedEnvironment):
    """Reads and runs templates within the limits above."""

    intercepted_binops = _ARITHMETIC

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all(nodes.Node):
            _check(node)
        return cast("nodes.Template", _Charged(self).visit(tree))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether an attribute may be read: it is no method and nothing internal."""
        return not callable(value) and super().is_safe_attribute(obj, attr, value)

    def is_safe_callable(self, obj: Any) -> bool:
        """Nothing is called."""
        del obj
        return False

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Reckon with numbers only: texts and lists would swell."""
        if isinstance(left, (int, float, Decimal)) and isinstance(right, (int, float, Decimal)) and operator != "**":
            return super().call_binop(context, operator, left, right)
        raise TypeError(f"{operator} is for numbers")


def _check(node: nodes.Node) -> None:
    """Refuse what no template of ours may have. Raises TemplateSyntaxError."""
    wrong = None
    if not isinstance(node, _TAKEN):
        wrong = f"{type(node).__name__} is not for templates here"
    elif isinstance(node, nodes.Name) and node.name.startswith("_"):
        wrong = "names do not begin with an underscore"
    elif isinstance(node, nodes.For) and (node.recursive or node.test is not None):
        wrong = "a loop has no `if` and no `recursive` here: write {% if %} inside it"
    elif isinstance(node, nodes.List) and not all(isinstance(item, nodes.Const) for item in node.items):
        wrong = "a list holds constants only"
    elif isinstance(node, nodes.Tuple) and node.ctx == "load":
        wrong = "tuples are not for templates here"
    if wrong is not None:
        raise TemplateSyntaxError(wrong, getattr(node, "lineno", None) or 1)


class _Charged(NodeTransformer):
    """Puts what spends into a tree."""

    def __init__(self, made: Sandbox) -> None:
        self._made = made

    def visit_Template(self, node: nodes.Template) -> nodes.Node:  # noqa: N802 - named by jinja2
        return self._charged(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:  # noqa: N802 - as above
        return self._charged(node)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - as above
        return self._charged(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - as above
        self.generic_visit(node)
        return self._filtered(node, "_joined", node.lineno)

    def _charged(self, node: "nodes.Template | nodes.Block | nodes.For") -> nodes.Node:
        much = _ROUND + _STEP * sum(1 for part in node.body for _ in part.find_all(nodes.Node))
        much += sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        spending = self._filtered(nodes.Const(much, lineno=node.lineno, environment=self._made), "_spent", node.lineno)
        node.body.insert(0, nodes.Output([spending], lineno=node.lineno, environment=self._made))
        return node

    def _filtered(self, node: nodes.Expr, name: str, lineno: int) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=lineno, environment=self._made)


def _budget(context: Context) -> Budget:
    budget = context["_budget"]
    assert isinstance(budget, Budget)  # noqa: S101 - render puts it there
    return budget


def _words(context: Context) -> Words:
    words = context["_words"]
    assert isinstance(words, Words)  # noqa: S101 - as above
    return words


@pass_context
def _shown(context: Context, value: Any) -> Any:
    if isinstance(value, (list, tuple, dict, Undefined)):
        if isinstance(value, Undefined):
            str(value)  # raises, and says what is missing
        raise TypeError("a list is shown by a loop over it")
    _budget(context).spend(len(value) if isinstance(value, str) else 20)
    return value


@pass_context
def _shown_as_markdown(context: Context, value: Any) -> Any:
    return markdown.escape(_shown(context, value))


@pass_context
def _spent(context: Context, much: int) -> str:
    _budget(context).spend(much)
    return _NOTHING


@pass_context
def _joined(context: Context, text: str) -> str:
    _budget(context).spend(len(text))
    if len(text) > JOINED_MAX:
        raise TypeError(f"~ makes texts of {JOINED_MAX} characters at most")
    return text


def _charging(change: Callable[[str], str]) -> Any:
    @pass_context
    def changed(context: Context, value: str) -> str:
        _budget(context).spend(len(value) // 8)
        return change(value)

    return changed


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


_FILTERS: Final[dict[str, Any]] = {
    "_spent": _spent,
    "_joined": _joined,
    "number": _number,
    "money": _money,
    "dollars": _dollars,
    "day": _day,
    "clock": _clock,
    "lower": _charging(str.lower),
    "upper": _charging(str.upper),
    "line": _charging(markdown.line),
    "link": _charging(markdown.link),
    "labelled": markdown.labelled,
}
