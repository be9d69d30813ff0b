"""What a message looks like: words by language and zone, escaping by channel, and templates that are wrong."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.domain import text
from services.alerts.domain.cutting import clip, fit, units
from services.alerts.domain.markdown import escape, line
from services.alerts.domain.matching import sightings
from services.alerts.domain.routing import Wishes
from services.alerts.domain.templates import SUBJECT_MAX, Source, TemplateRefused, render
from services.alerts.domain.text import Message, context
from services.alerts.domain.words import Words
from services.alerts.service import Preferences
from services.alerts.service.preferences import Said
from services.alerts.store.preferences import PreferenceStore
from services.alerts.templates import packaged, render_packaged
from shared.db import Database
from tests.alerts.conftest import ACTOR, NOW, Bench, activity, contract
from tests.conftest import ManualClock

GERMAN = Words("de_DE", "Europe/Berlin")
NASTY = "<Ben & Jerry's> @everyone `rm` *x* [click](https://evil.example) https://evil.example"


def alert(**changed: Any) -> Message:
    best = sightings(activity(contract(premium=1_250_000)))
    made = Message(
        delivery_id=UUID(int=1),
        target="reader@example.org",
        title="AAPL: 3 unusual contracts, score 80",
        lines=text.body("AAPL", best, 3),
        notes=("Rule watchlist.",),
        simulated=False,
        at=NOW,
        kind="alert",
        fields=text.fields("AAPL", best, 3),
    )
    return replace(made, **changed)


def test_numbers_and_times_follow_the_readers_language_and_zone() -> None:
    assert [one.number(Decimal("1234567.50")) for one in (Words(), GERMAN)] == ["1,234,567.5", "1.234.567,5"]
    assert [one.money(Decimal(1234), "EUR") for one in (Words(), GERMAN)] == ["1,234.00 EUR", "1.234,00 EUR"]
    assert [one.dollars(Decimal(1_250_000)) for one in (Words(), GERMAN)] == ["$1.2M", "$1,2M"]
    assert [one.clock(NOW) for one in (Words(), GERMAN)] == ["2:30 PM UTC", "16:30 CEST"]
    late = datetime(2025, 6, 2, 23, 30, tzinfo=UTC)
    assert [one.day(late) for one in (Words(), GERMAN)] == ["June 2, 2025", "3. Juni 2025"]
    assert GERMAN.day(date(2025, 6, 2)) == "2. Juni 2025"


@pytest.mark.parametrize("words", [Words("xx_YY", "Mars/Phobos"), Words("", ""), Words("../etc", "/etc/passwd")])
def test_a_language_or_zone_that_nobody_knows_is_the_default(words: Words) -> None:
    assert (words.number(1234), words.clock(NOW)) == ("1,234", "2:30 PM UTC")


def test_an_alerts_mail_has_a_text_and_html_with_the_readers_numbers() -> None:
    mail = render_packaged("email", "alert", context(alert()), GERMAN)
    assert mail.html is not None
    assert (mail.version, mail.subject) == ("email/alert.1", "AAPL: 3 unusual contracts, score 80")
    assert "$1,2M" in mail.html
    assert "20. Juni 2025" in mail.html
    assert "and 2 more" in mail.text
    assert "fonts.googleapis" not in mail.html  # nothing is loaded from elsewhere


@pytest.mark.parametrize("bad", ["\x00", "\x0b", "\x1b", "\x7f", "\x85", "\ufffe", "\ud800"], ids=ascii)
def test_a_character_that_xml_may_not_hold_costs_nobody_a_mail(bad: str) -> None:
    refused = alert(title=f"no {bad}", lines=(f"why: {bad}",), kind="order_rejected", fields={})
    mail = render_packaged("email", refused.kind, context(refused))
    assert mail is not None
    assert mail.html is not None
    assert "why:" in mail.html


def test_what_others_wrote_is_escaped_as_each_channel_needs_it() -> None:
    nasty = alert(title=NASTY, lines=(NASTY,), notes=(NASTY,), kind="order_rejected", fields={})
    mail = render_packaged("email", nasty.kind, context(nasty))
    discord = render_packaged("discord", nasty.kind, context(nasty))
    assert mail.html is not None
    assert "&lt;Ben &amp; Jerry&#39;s&gt;" in mail.html
    assert "<Ben" not in mail.html
    assert NASTY in mail.text
    for part in (discord.subject, discord.text):
        assert "@everyone" not in part
        assert "https://" not in part
        assert r"\<Ben & Jerry's\>" in part
        assert r"\`rm\` \*x\* \[click\]" in part


def test_only_a_link_that_stands_after_a_label_is_one_on_discord() -> None:
    assert line("Receipt: https://pay.example/r?a=1&b=_2_") == "Receipt: <https://pay.example/r?a=1&b=_2_>"
    assert line("see https://evil.example") == r"see https\://evil.example"
    assert line("Pay here: https://pay.example/<x>") == r"Pay here: https\://pay.example/\<x\>"
    assert (
        escape("# big\n- list\n1. one\n<@123> <!here>") == "\\# big\n\\- list\n1\\. one\n\\<@\u200b123\\> \\<!here\\>"
    )


@given(st.text("ab1 \t\n\r.#-+\\`*_~|<>[]:/@!&") | st.sampled_from(["@everyone", "@HERE", "@1", "1. a", "a://b"]))
def test_a_value_that_discord_would_read_as_markup_is_never_passed_over(value: str) -> None:
    beside = escape(f"{value}\n*")  # the star alone has it looked through
    assert str(escape(value)) == beside.removesuffix("\n\\*")


def test_a_link_in_a_mails_html_is_a_button_and_cannot_break_out_of_its_attribute() -> None:
    receipt = alert(
        lines=('Receipt: https://pay.example/r?"onclick=x', "Receipt: https://pay.example/r"), kind="receipt"
    )
    mail = render_packaged("email", "receipt", context(receipt))
    assert mail.html is not None
    assert 'href="https://pay.example/r"' in mail.html
    assert '"onclick' not in mail.html


@pytest.mark.parametrize(
    "changed",
    [
        {"text": "{% if %}"},
        {"text": "{{ nobody }}"},
        {"text": "{{ title.nobody }}"},
        {"subject": "{{ title | nofilter }}"},
        {"text": "{% include 'nothing' %}"},
        {"mjml": "<mjml><mj-body>"},
        {"mjml": "no markup at all"},
        {"text": "{{ ''.__class__ }}"},
        {"text": "{{ title.upper() }}"},
        {"text": "{{ range(9) }}"},
        {"text": "{{ title * 1000000 }}"},
        {"text": "{{ '%9999999d' % 1 }}"},
        {"text": "{{ 10 ** 10 }}"},
        {"text": "{{ title | number }}"},
        {"text": "{{ 1 / 0 }}"},
        {"mjml": "<mjml><mj-body>{% for a in long %}{{ long }}{% endfor %}</mj-body></mjml>"},
    ],
)
def test_a_template_that_is_wrong_or_reaches_out_is_refused(changed: dict[str, str]) -> None:
    good = Source("email", "alert", "alert#1", "{{ title }}", "{{ title }}", "<mjml><mj-body></mj-body></mjml>")
    about = {**context(alert()), "long": "x" * 1_000}
    assert render(good, about).subject.startswith("AAPL")
    with pytest.raises(TemplateRefused):
        render(replace(good, **changed), about)


def test_a_subject_is_one_line_however_the_title_reads() -> None:
    source = Source("email", "m", "m.1", "{{ title }}", "-")
    assert render(source, {"title": "a\r\nBcc: eve@example.org\x00\u2028b"}).subject == "a Bcc: eve@example.org b"
    assert len(render(source, {"title": "x" * 1_000}).subject) == SUBJECT_MAX


def test_every_packaged_template_renders_for_a_message_with_nothing_in_it() -> None:
    empty = alert(title="", lines=(), notes=(), fields=text.fields("AAPL", (), 0))
    for versions in packaged().sources.values():
        for source in versions:
            assert render(source, context(empty), Words(), packaged().partials).version.endswith(source.version)


@pytest.mark.parametrize(
    ("whole", "cut"),
    [
        ("abcdef", "abcd…"),
        ("abc\u0301\u0301def", "ab…"),
        ("abc👨\u200d👩\u200d👧", "abc…"),
        ("ab🇩🇪🇫🇷", "ab…"),
        ("abc\\*x", "abc…"),
    ],
)
def test_a_cut_divides_nothing_that_is_seen_as_one(whole: str, cut: str) -> None:
    assert clip(whole, 5) == cut


def test_of_blocks_that_are_too_many_whole_ones_go_and_their_number_is_told() -> None:
    assert fit("one\n\ntwo\n\nthree", 16) == "one\n\ntwo\n\nthree"
    assert fit("first\n\nsecond\n\nthird\n\nfourth", 21) == "first\n\nand 3 more"
    assert fit("first\nsecond\nthird", 17) == "first\nand 2 more"


@given(st.text(max_size=200), st.integers(12, 100))
def test_what_is_fitted_never_exceeds_what_is_allowed(whole: str, longest: int) -> None:
    whole = whole.encode("utf-8", "ignore").decode()
    assert units(fit(whole, longest)) <= longest
    assert units(clip(whole, longest)) <= longest


async def test_an_alerts_numbers_and_times_follow_what_its_user_chose(open_database: Callable[[str], Database]) -> None:
    bench = Bench(open_database("alerts"), ManualClock(NOW))
    preferences = Preferences(PreferenceStore(), clock=bench.clock, new_id=uuid4)
    for zone, shown in (("Europe/Berlin", "16:30 CEST"), ("Asia/Tokyo", "23:30 JST")):
        user = await bench.user("AAPL")
        await bench.channel(user)
        said = Said(Wishes(), zone, "de-DE")
        await bench.door.run(lambda tx, user=user, said=said: preferences.put(ACTOR, user, said, tx))
        await bench.tell(activity(contract(premium=1_250_000, score=80.0 + len(zone))))
        await bench.deliver()
        sent = bench.discord.sent[-1]
        assert sent.words == Words("de-DE", zone)
        assert any(shown in note for note in sent.notes)
        assert any("$1,2M" in one for one in sent.lines)
