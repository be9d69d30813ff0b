"""The rules of alerts."""

from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.domain import text
from services.alerts.domain.channels import checked_target, lane_of, masked
from services.alerts.domain.matching import (
    Known,
    Line,
    Rule,
    alert_id,
    better,
    by_alert,
    changes,
    rings,
    sightings,
    summarise,
)
from services.alerts.domain.words import Words
from shared.errors import Invalid
from tests.alerts.conftest import NOW, SESSION, WEBHOOK, activity, contract

STOCK = ("AAPL", SESSION)


def rule(min_score: float = 60, min_premium: int = 0, user: UUID | None = None) -> Rule:
    return Rule(user or uuid4(), uuid4(), "watchlist", min_score, Decimal(min_premium))


names = st.sampled_from([f"C{n}" for n in range(8)])
contracts = st.builds(contract, names, st.floats(0, 100), st.integers(0, 10**7))
snapshots = st.lists(st.lists(contracts, min_size=1, max_size=6), min_size=1, max_size=6)


@given(snapshots)
def test_a_contract_counts_once_however_often_it_is_seen_and_at_its_best(found: list) -> None:
    known: dict[str, Line] = {}
    for snapshot in found:
        known |= better(known, sightings(activity(*snapshot)))
    seen = [one for snapshot in found for one in snapshot]
    summary = summarise(known.values(), 0, Decimal(0), 3)
    assert summary is not None
    assert summary.contract_count == len({one.contract for one in seen})
    assert summary.top_score == max(one.score for one in seen)


@given(snapshots)
def test_the_end_does_not_depend_on_how_events_are_cut_into_batches(found: list) -> None:
    one_by_one: dict[str, Line] = {}
    for snapshot in found:
        one_by_one |= better(one_by_one, sightings(activity(*snapshot)))
    at_once = better({}, (line for snapshot in found for line in sightings(activity(*snapshot))))
    assert one_by_one == at_once


@given(snapshots, st.floats(0, 100), st.integers(0, 10**7), st.integers(1, 5))
def test_a_summary_shows_the_best_few_of_what_passes_and_counts_all(
    found: list, min_score: float, min_premium: int, few: int
) -> None:
    lines = better({}, (line for snapshot in found for line in sightings(activity(*snapshot)))).values()
    passing = [one for one in lines if one.score >= min_score and one.premium_usd >= min_premium]
    summary = summarise(lines, min_score, Decimal(min_premium), few)
    if not passing:
        assert summary is None
        return
    assert summary is not None
    assert summary.contract_count == len(passing)
    assert len(summary.best) == min(few, len(passing))
    assert all(shown.rank >= other.rank for shown in summary.best for other in set(passing) - set(summary.best))
    assert summary.premium_usd == sum(one.premium_usd for one in passing)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(1, 50))
def test_it_rings_at_first_and_then_only_when_the_score_rose_by_the_step_since_it_last_rang(
    scores: list[float], step: float
) -> None:
    rung: list[float] = []
    top = 0.0
    for score in scores:
        top = max(top, score)
        known = Known(None, rung[-1], len(rung)) if rung else None  # pyright: ignore[reportArgumentType]
        if rings(known, top, step):
            rung.append(top)
    assert len(rung) >= 1
    assert all(later >= earlier + step for earlier, later in pairwise(rung))
    assert len(rung) <= 1 + (top - rung[0]) / step


def test_each_user_rule_symbol_and_session_has_its_own_alert() -> None:
    one, two = rule(), rule()
    ids = {
        alert_id(one, STOCK),
        alert_id(two, STOCK),
        alert_id(one, ("MSFT", SESSION)),
        alert_id(one, ("AAPL", SESSION + timedelta(days=1))),
    }
    assert len(ids) == 4
    assert alert_id(one, STOCK) in ids


def test_what_shows_nothing_new_is_no_change() -> None:
    event, one = activity(), rule()
    lines = list(better({}, sightings(event)).values())
    (change,) = changes(STOCK, lines, [event], by_alert([one], STOCK), {}, best_few=3, step=10)
    known = {change.alert_id: Known(change.summary, change.notified_score, change.notifications)}
    assert changes(STOCK, lines, [event], by_alert([one], STOCK), known, best_few=3, step=10) == []


def test_a_contract_without_the_premium_is_no_match() -> None:
    event = activity(contract(premium=10_000))
    lines = list(better({}, sightings(event)).values())
    assert changes(STOCK, lines, [event], by_alert([rule(min_premium=10_001)], STOCK), {}, best_few=3, step=10) == []


def test_what_is_simulated_says_so_in_title_and_notes() -> None:
    lines = sightings(activity(simulated=True))
    summary = summarise(lines, 0, Decimal(0), 3)
    assert summary is not None
    assert text.title("AAPL", summary).startswith("[SIMULATED] ")
    notes = text.notes(
        rule_name="watchlist",
        session=SESSION,
        as_of=NOW,
        delay_s=900,
        source="cboe",
        premium_usd=summary.premium_usd,
        simulated=True,
        repeat=False,
    )
    assert text.SIMULATED_NOTE in notes
    assert text.REPEAT_NOTE not in notes


def test_a_line_reads_as_a_trader_would_say_it() -> None:
    (one,) = sightings(activity())
    assert text.line("AAPL", one) == (
        "AAPL 2025-06-20 200 call, score 80, volume 5,000 over 400 open, premium $100k, at the ask"
    )
    assert text.body("AAPL", [one], 4)[-1] == "and 3 more"


@pytest.mark.parametrize(
    ("amount", "told"),
    [("999", "$999"), ("1000", "$1k"), ("999999", "$1000k"), ("1250000", "$1.2M"), ("3.2E9", "$3.2B")],
)
def test_amounts_are_short(amount: str, told: str) -> None:
    assert Words().dollars(Decimal(amount)) == told


def test_a_webhook_of_discord_is_accepted_as_it_is() -> None:
    assert checked_target("discord", WEBHOOK, extra_base=None) == WEBHOOK
    versioned = WEBHOOK.replace("/api/", "/api/v10/").replace("discord.com", "discordapp.com")
    assert checked_target("discord", versioned, extra_base=None) == versioned


@pytest.mark.parametrize(
    "url",
    [
        WEBHOOK.replace("https", "http"),
        WEBHOOK.replace("discord.com", "discord.com.evil.example"),
        WEBHOOK.replace("discord.com", "evil.example"),
        WEBHOOK.replace("discord.com", "discord.com@evil.example"),
        WEBHOOK.replace("discord.com", "user:pass@discord.com"),
        WEBHOOK.replace("discord.com", "discord.com:8443"),
        WEBHOOK.replace("discord.com", "127.0.0.1"),
        WEBHOOK.replace("/webhooks/", "/webhooks/../users/"),
        WEBHOOK.replace("/123", "/١٢٣"),
        WEBHOOK + "/slack",
        WEBHOOK + "?wait=false",
        WEBHOOK + "#x",
        WEBHOOK + "\n",
        " " + WEBHOOK,
        "https://discord.com/api/webhooks/1/short",
        "https://[::1",
        "https://discord.com:port/api",
        "",
    ],
)
def test_anything_else_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        checked_target("discord", url, extra_base="http://127.0.0.1:9")
    assert "s3cret" not in str(caught.value)


def test_another_origin_must_be_configured() -> None:
    local = WEBHOOK.replace("https://discord.com", "http://127.0.0.1:9")
    assert checked_target("discord", local, extra_base="http://127.0.0.1:9/") == local


@pytest.mark.parametrize("address", ["nobody", "a@b@c.org", "a@exa mple.org", "ä@example.org", "a@b.org\nBcc: c@d.org"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(Invalid):
        checked_target("email", address, extra_base=None)


def test_a_masked_webhook_and_its_lane_give_no_secret_away() -> None:
    assert masked("discord", WEBHOOK) == "https://discord.com/api/webhooks/…5678/…"
    assert "s3cret" not in lane_of("discord", WEBHOOK)
    assert lane_of("discord", WEBHOOK) != lane_of("discord", WEBHOOK + "x")
