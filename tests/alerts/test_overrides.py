"""Templates that administrators write: checked, versioned, taken back, and never in the way of a delivery."""

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any, get_args
from uuid import UUID, uuid4

import pytest

from services.alerts.adapters.laid_out import LaidOut
from services.alerts.domain.overrides import KINDS, Place, check
from services.alerts.domain.sandbox import JOINED_MAX, SOURCE_MAX
from services.alerts.domain.templates import Source, TemplateRefused, render
from services.alerts.domain.text import Message, context
from services.alerts.domain.unsubscribing import UnsubscribeLinks
from services.alerts.domain.words import Words
from services.alerts.main import PAYLOADS
from services.alerts.service.layout import Layout
from services.alerts.service.templates import Draft, Templates
from services.alerts.store.templates import TemplateStore
from services.alerts.templates import packaged, rendered
from shared.clock import new_id
from shared.contracts.alerts import Channel
from shared.db import Database
from shared.errors import NotFound
from tests.alerts.conftest import ACTOR, NOW, Bench, FakeSender, activity
from tests.alerts.test_notices import receipt
from tests.alerts.test_routes import Client, client
from tests.conftest import ManualClock

__all__ = ["client"]

PLAIN = Draft("{{ title }}", "{% for line in lines %}\n{{ line }}\n{% endfor %}\n")
MJML = "<mjml><mj-body><mj-section><mj-column><mj-text>{{ title }}</mj-text></mj-column></mj-section></mj-body></mjml>"
NASTY = "<Ben> @everyone `rm` \u202egnp.exe\nsecond"
DOUBLED = "{% set x = title ~ title %}" + "{% set x = x ~ x %}" * 40 + "{{ x }}"
NESTED = "{% for a in title %}" * 8 + "x" + "{% endfor %}" * 8


def source(text: str, **changed: Any) -> Source:
    return replace(Source("discord", "alert", "alert@any.1", "{{ title }}", text), **changed)


def told(**changed: Any) -> Message:
    made = Message(
        delivery_id=UUID(int=1),
        target="reader@example.org",
        title="Your Openbell subscription is paid: 29.00 USD",
        lines=("Plan: pro",),
        notes=(),
        simulated=False,
        at=NOW,
        kind="receipt",
    )
    return replace(made, **changed)


@pytest.mark.parametrize(
    ("written", "part", "line", "reason"),
    [
        (source("one\n{% if %}"), "text", 2, "Expected an expression"),
        (source("{{ title }}\n\n{{ nobody }}"), "text", 3, "there is no nobody"),
        (source("{% if simulated and more > 99 %}\n{{ sections }}{% endif %}"), "text", 2, "there is no sections"),
        (source("one\n{% for one in contracts %}\n{{ one.strikee }}{% endfor %}"), "text", 3, "strikee"),
        (source("{{ title }}", subject="{{ title | shout }}"), "subject", 1, "shout"),
        (source("{{ ''.__class__ }}"), "text", 1, "__class__"),
        (source("{{ title.upper() }}"), "text", 1, "Call is not for templates"),
        (source("{% macro x() %}{{ x() }}{% endmacro %}"), "text", 1, "Macro is not"),
        (source("{% include 'layout.mjml' %}"), "text", 1, "Include is not"),
        (source("{% set x %}{{ title }}{% endset %}"), "text", 1, "AssignBlock is not"),
        (source("{% autoescape false %}{{ title }}{% endautoescape %}"), "text", 1, "is not for templates"),
        (source("{{ _words }}"), "text", 1, "underscore"),
        (source("{% for a in lines if a %}{% endfor %}"), "text", 1, "a loop has no `if`"),
        (source("{{ [title, title] }}"), "text", 1, "constants only"),
        (source("{{ lines }}"), "text", 1, "shown by a loop"),
        (source("{{ 9 ** 9 }}"), "text", 1, "Pow is not"),
        (source("{{ lines[0] * 9 }}"), "text", 1, "for numbers"),
        (source("x" * (SOURCE_MAX + 1)), "text", 1, "more than"),
        (source("x" * 4_097), "text", None, "longer than the 4096"),
        (source("{{ title }}", subject="x" * 251), "subject", None, "longer than the 250"),
        (source("x" * 3_001, channel="webpush", kind="message"), "text", None, "3000"),
        (source(DOUBLED), "text", 1, str(JOINED_MAX)),
        (source(NESTED), "text", 1, "does too much"),
        (source("{{ title }}", channel="email", mjml="<mjml><mj-body>"), "mjml", None, "end of stream"),
        (source("{{ title }}", channel="email"), "mjml", None, ""),
        (source("{{ title }}", mjml=MJML), "mjml", None, ""),
    ],
    ids=lambda one: None if isinstance(one, Source) else "",
)
def test_a_template_that_is_wrong_is_refused_with_its_part_and_line(
    written: Source, part: str, line: int | None, reason: str
) -> None:
    with pytest.raises(TemplateRefused) as refused:
        check(written, packaged().partials)
    details = refused.value.details
    assert (details["part"], details.get("line")) == (part, line)
    assert reason in details.get("reason", "")


def test_every_packaged_template_holds_what_is_asked_of_an_administrators() -> None:
    for (channel, kind), versions in packaged().sources.items():
        if kind in KINDS:
            for one in versions:
                check(replace(one, channel="apprise" if channel == "plain" else channel), packaged().partials)


@pytest.mark.parametrize("channel", ["discord", "email", "webpush", "fcm", "apprise"])
def test_what_others_wrote_is_escaped_on_every_channel(channel: str) -> None:
    made = rendered(channel, told(title=NASTY, lines=(NASTY,)))
    assert "\n" not in made.subject
    if channel == "discord":
        assert r"\<Ben\>" in made.text
        assert "@everyone" not in made.text + made.subject
        assert r"\`rm\`" in made.text
    elif channel == "email":
        assert made.html is not None
        assert "&lt;Ben&gt;" in made.html
        assert "<Ben>" not in made.html
    assert "\u202e" not in made.subject  # what is not printable does not turn a title round


class Laying:
    """A layout with templates on a bench, and a sender behind it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.templates = Templates(TemplateStore(), bench.door, clock=bench.clock, new_id=new_id)
        self.layout = Layout(UnsubscribeLinks("x" * 32, ""), self.templates, bench.clock)
        self.sender = FakeSender()

    async def write(self, place: Place, draft: Draft) -> int:
        row = await self.bench.door.run(lambda tx: self.templates.write(ACTOR, place, draft, tx))
        return row["version"]

    async def send(self, message: Message, channel: Any = "discord") -> str | None:
        sent = await LaidOut(self.sender, partial(self.layout.dress, channel)).send(message)
        return sent.template


@pytest.fixture
def laying(open_database: Callable[[str], Database]) -> Laying:
    return Laying(Bench(open_database("alerts"), ManualClock(NOW)))


async def test_the_nearest_template_lays_a_message_out_and_the_delivery_says_which(laying: Laying) -> None:
    german = told(words=Words("de_DE"))
    assert await laying.send(german) == "discord/message.1"
    assert await laying.write(("discord", "message", "any"), PLAIN) == 1
    assert await laying.send(german) == "discord/message@any.1"
    await laying.write(("discord", "receipt", "any"), replace(PLAIN, subject="Paid: {{ title }}"))
    assert await laying.write(("discord", "receipt", "de"), replace(PLAIN, subject="Bezahlt: {{ title }}")) == 1
    assert await laying.write(("discord", "receipt", "de"), replace(PLAIN, subject="Quittung: {{ title }}")) == 2
    assert await laying.send(german) == "discord/receipt@de.2"
    assert await laying.send(told()) == "discord/receipt@any.1"
    assert await laying.send(german, "webpush") == "plain/message.1"
    assert await laying.send(german, "webhook") is None
    titles = [one.rendered.subject for one in laying.sender.sent if one.rendered is not None]
    assert titles[2].startswith("Quittung: ")
    assert titles[3].startswith("Paid: ")


async def test_versions_stay_and_an_older_one_is_used_again(laying: Laying) -> None:
    place, bench = ("discord", "receipt", "any"), laying.bench
    for subject in ("one", "two"):
        await laying.write(place, replace(PLAIN, subject=subject))
    await bench.door.run(lambda tx: laying.templates.revert(ACTOR, place, 1, tx))
    assert await laying.send(told()) == "discord/receipt@any.3"
    await bench.door.run(lambda tx: laying.templates.revert(ACTOR, place, 0, tx))
    assert await laying.send(told()) == "discord/message.1"
    async with bench.door.read() as tx:
        versions = await laying.templates.versions(place, 9, tx)
    assert [(row["version"], row["subject"]) for row in versions] == [(4, None), (3, "one"), (2, "two"), (1, "one")]
    with pytest.raises(NotFound):
        await bench.door.run(lambda tx: laying.templates.revert(ACTOR, place, 9, tx))
    with pytest.raises(NotFound):
        await bench.door.run(lambda tx: laying.templates.revert(ACTOR, ("fcm", "rule", "any"), 0, tx))


async def test_a_template_that_fails_gives_way_and_that_is_counted_and_shown(laying: Laying) -> None:
    bench = laying.bench
    await laying.write(("discord", "receipt", "any"), PLAIN)
    await bench.execute("update templates set text = '{{ lines[7] }}'")
    for _ in range(3):
        assert await laying.send(told()) == "discord/message.1"
    bench.clock.advance(11)
    assert await laying.send(told()) == "discord/message.1"
    (row,) = await bench.rows("templates")
    assert row["failures"] == 4
    assert "the template cannot be rendered in line 1" in row["last_failure"]
    assert len(laying.sender.sent) == 4


async def test_templates_are_read_anew_after_seconds_and_the_known_ones_kept_when_that_fails(laying: Laying) -> None:
    bench, other = laying.bench, Laying(laying.bench)
    await laying.write(("discord", "receipt", "any"), PLAIN)
    assert await other.send(told()) == "discord/receipt@any.1"
    await laying.write(("discord", "receipt", "any"), PLAIN)
    assert await other.send(told()) == "discord/receipt@any.1"
    bench.clock.advance(5)
    assert await other.send(told()) == "discord/receipt@any.2"
    await bench.execute("alter table templates rename to elsewhere")
    bench.clock.advance(5)
    assert await other.send(told()) == "discord/receipt@any.2"


async def test_administrators_write_check_list_and_revert_templates_over_http(client: Client) -> None:
    admin, user = uuid4(), await client.bench.user()
    place, draft = "/api/alerts/templates/email/receipt/de", {"subject": "Q", "text": "{{ title }}", "mjml": MJML}
    for method, path in (("PUT", place), ("DELETE", place), ("GET", place), ("GET", "/api/alerts/templates")):
        json = {"json": draft} if method == "PUT" else {}
        assert (await client(method, path, user, **json)).status_code == 403
    ask = partial(client, user=admin, role="admin")
    written = await ask("PUT", place, json=draft)
    assert (written.status_code, written.json()["version"], written.json()["author"]) == (200, 1, str(admin))
    checked = await ask("POST", f"{place}/check", json=draft)
    assert checked.json()["subject"] == "Q"
    assert "AAPL: 3 unusual contracts" in checked.json()["html"]
    bad = await ask("PUT", place, json={**draft, "text": "one\n{{ nobody }}"})
    assert (bad.status_code, bad.json()["error"]["code"]) == (422, "TEMPLATE_REFUSED")
    assert (bad.json()["error"]["details"]["part"], bad.json()["error"]["details"]["line"]) == ("text", 2)
    for wrong in ("email/receipt/German", "webhook/receipt/de", "email/confirmation/any", "email/receipt/d"):
        refused = await ask("PUT", f"/api/alerts/templates/{wrong}", json=draft)
        assert refused.status_code in {400, 404, 422}, wrong
    assert (await ask("DELETE", place)).status_code == 204
    assert (await ask("POST", f"{place}/revert/1")).json()["version"] == 3
    assert [one["version"] for one in (await ask("GET", place)).json()] == [3, 2, 1]
    assert [one["version"] for one in (await ask("GET", "/api/alerts/templates")).json()] == [3]
    actions = [row["value"] for row in await client.bench.rows("outbox")]
    assert sum(b"write.template" in value for value in actions) == 1
    assert sum(b"revert.template" in value for value in actions) == 2


async def test_a_preview_shows_what_a_user_was_told_on_every_channel_and_sends_nothing(client: Client) -> None:
    bench = client.bench
    user, other = await bench.user("AAPL"), await bench.user()
    path = f"/api/alerts/{user}/preview"
    assert (await client("GET", path, user)).status_code == 404
    await bench.handle(bench.telling.tell, [receipt(user, amount=Decimal("12.5"))])
    await bench.tell(activity())
    shown = (await client("GET", path, user)).json()
    assert shown["kind"] == "alert"
    channels = {one["channel"]: one for one in shown["channels"]}
    assert set(channels) == {"discord", "email", "webhook", "webpush", "fcm", "apprise"}
    assert channels["email"]["template"] == "email/alert.1"
    assert "AAPL 200 call" in channels["email"]["html"]
    assert channels["discord"]["payload"]["embeds"][0]["title"] == shown["title"]
    assert channels["discord"]["payload"]["allowed_mentions"] == {"parse": []}
    assert channels["webpush"]["payload"]["title"] == shown["title"]
    assert channels["fcm"]["payload"]["notification"]["title"] == shown["title"]
    assert (channels["webhook"]["template"], channels["webhook"]["payload"]["title"]) == (None, shown["title"])
    paid = (await client("GET", path, user, params={"kind": "receipt"})).json()
    assert paid["title"] == "Your Openbell subscription is paid: 12.50 USD"
    (notice,) = await bench.rows("notices")
    again = await client("GET", path, user, params={"notice_id": str(notice["notice_id"])})
    assert again.json() == paid
    theirs = await client("GET", f"/api/alerts/{other}/preview", other, params={"notice_id": str(notice["notice_id"])})
    assert theirs.status_code == 404
    assert (await client("GET", path, other)).status_code == 403
    assert await bench.rows("deliveries") == []


async def test_a_delivery_that_was_taken_names_its_template(client: Client) -> None:
    bench = client.bench
    user = await bench.user("AAPL")
    await bench.channel(user)
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [receipt(user)])
    bench.discord.templates = ["discord/alert.1", "discord/message@any.3"]
    await bench.deliver()
    log = (await client("GET", f"/api/alerts/{user}/deliveries", user)).json()["deliveries"]
    assert {one["kind"]: one["template"] for one in log} == {
        "activity": "discord/alert.1",
        "receipt": "discord/message@any.3",
    }


def test_what_is_rendered_follows_its_budget_and_not_the_number_of_lines() -> None:
    long = context(told(lines=tuple(f"line {number}" for number in range(2_000))))
    made = render(source("{% for line in lines %}\n{{ line }}\n{% endfor %}", kind="message"), long)
    assert "line 1999" in made.text


@pytest.mark.parametrize(
    "unseen", ["\u202e", "\u2066", "\u200f", "\x1b", "\x9b", "\u200b", "\ufeff", "\xad", "\U000e0041"]
)
async def test_on_every_channel_a_name_cannot_turn_or_hide_the_words_around_it(bench: Bench, unseen: str) -> None:
    name, family = f"Evil {unseen}Corp", "\U0001f468\u200d\U0001f467"
    words = replace(told(title=name, lines=(name,)), notes=(name, family), fields={"sections": [{"title": name}]})
    layout = Laying(bench).layout
    for channel in get_args(Channel):
        dressed = await layout.dress(channel, words)
        shown = [dressed.title, *dressed.lines, *dressed.notes, *dressed.fields["sections"][0].values()]
        if dressed.rendered is not None:
            shown += [dressed.rendered.subject, dressed.rendered.text, dressed.rendered.html or ""]
        if channel in PAYLOADS:
            shown.append(json.dumps(PAYLOADS[channel](dressed), ensure_ascii=False, default=str))
        assert not [one for one in shown if unseen in one], channel
        assert [one for one in shown if "Evil Corp" in one], channel
        assert family in dressed.notes
