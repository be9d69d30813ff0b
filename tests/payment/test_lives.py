"""Whatever happens to webhooks on the way, in the end everything is as if each had come at once, in order.

Lives of all kinds are lived twice: by one customer each, in an account whose webhooks come as they should; and by a
thousand customers in another account, whose webhooks come late, twice, mixed up, or never. A life's subscriptions,
ledger, and what its user was told must then be the same. Chance comes from a seed, OPENBELL_LIVES_SEED.
"""

import os
from collections import Counter, defaultdict
from random import Random
from typing import Any
from uuid import UUID

import pytest

from tests.fakes.stripe.books import Obj
from tests.payment.inprocess import InProcess, started
from tests.payment.lives import DAYS, ID, RECIPES, World

LIVES = int(os.environ.get("OPENBELL_LIVES", "1000"))
SEED = os.environ.get("OPENBELL_LIVES_SEED", "1")
SWEPT = {1, 2, 3}
"""Epochs at whose end Stripe is swept, and once more at the very end: it looks back 30 days."""

Outcome = dict[str, Any]


async def orderly(world: World, service: InProcess) -> None:
    """Let every webhook come, in order, and be settled before the next epoch."""
    for epoch in range(len(DAYS)):
        await service.deliver(world.live(epoch))
        await service.settle(wholly=True)


async def chaotic(world: World, service: InProcess, random: Random) -> Counter[str]:
    """Lose webhooks, delay, double and mix them up; sweep now and then, and at last."""
    late: list[Obj] = []
    counts: Counter[str] = Counter()
    for epoch in range(len(DAYS)):
        late += world.live(epoch)
        now = [event for event in late if epoch == len(DAYS) - 1 or random.random() < 0.6]
        chosen = {event["id"] for event in now}
        late = [event for event in late if event["id"] not in chosen]
        coming: list[Obj] = []
        for event in now:
            fate = random.choices(["once", "twice", "lost", "forgotten"], [70, 15, 12, 3])[0]
            counts[fate] += 1
            coming += [event] * {"once": 1, "twice": random.randint(2, 3), "lost": 0, "forgotten": 0}[fate]
            if fate != "lost":
                world.fake.delivered(event["id"])
        random.shuffle(coming)
        half = random.randrange(len(coming) + 1)
        await service.deliver(coming[:half])
        await service.settle()
        await service.deliver(coming[half:])
        await service.settle()
        if epoch in SWEPT:
            await service.job("stripe-sweep")(service.clock())
            await service.settle()
        counts["late"] += len(late)
    await service.job("stripe-sweep")(service.clock())
    await service.settle(wholly=True)
    return counts


async def outcomes(world: World, service: InProcess) -> dict[UUID, Outcome]:
    """Return what each user has in the end, with objects called by what they are."""
    names = world.names()
    found: dict[UUID, Outcome] = {life.user_id: defaultdict(list) for life in world.lives}

    def called(written: str) -> str:
        return ID.sub(lambda match: names[match[0]][1] if match[0] in names else match[0], written)

    def owner(written: str) -> UUID | None:
        return next((names[one][0] for one in ID.findall(written) if one in names), None)

    for row in await service.rows("select * from subscriptions order by created_at"):
        told = row["told"] or {}
        kept = ("plan", "status", "current_period_start", "current_period_end", "trial_end", "grace_until")
        shown = {name: row[name] for name in (*kept, "cancel_at_period_end")}
        shown |= {"name": called(row["provider_id"]), "entitlements": told.get("entitlements")}
        found[row["user_id"]]["subscriptions"].append(shown)
    for row in await service.rows("select name from notices order by name"):
        user_id = owner(row["name"])
        if user_id is not None and not row["name"].startswith(("audit/", "action/")):
            found[user_id]["notices"].append(called(row["name"]))
    for kind, body in service.told:
        if kind.startswith("payment.payment.") and not body.get("action_required"):
            told = (kind, called(body["reference"]), body["amount"], body.get("status"))
            found[UUID(body["user_id"])]["told"].append(told)
    if (await service.rows("select to_regclass('ledger_entries') is not null as there"))[0]["there"]:
        statement = """select key, kind, about, account, currency, amount from ledger_entries
                       join ledger_postings on entry = key order by key, line"""
        for row in await service.rows(statement):
            user_id = owner(row["key"]) or owner(row["about"])
            assert user_id is not None, row
            line = (called(row["key"]), row["kind"], called(row["about"]), row["account"], str(row["amount"]))
            found[user_id]["ledger"].append(line)
    for outcome in found.values():
        for name in outcome:
            outcome[name].sort(key=str)
    return found


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("OPENBELL_KAFKA") == "embedded", reason="no Kafka in it: the run on Apache has it")
@pytest.mark.timeout(300 + 2 * LIVES)
async def test_any_fate_of_webhooks_ends_as_the_orderly_life(
    database_url: str, other_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(SEED)
    model, chaos = World(), World()
    first = started(model.fake, database_url, monkeypatch, at_hand=True)
    second = started(chaos.fake, other_database_url, monkeypatch, at_hand=True)
    try:
        model.populate(await first.users(len(RECIPES), 1))
        chaos.populate(await second.users(LIVES, 2))
        await orderly(model, first)
        fates = await chaotic(chaos, second, random)
        expected = {life.recipe: (await outcomes(model, first))[life.user_id] for life in model.lives}
        became = await outcomes(chaos, second)
        wrong: dict[str, list[Any]] = defaultdict(list)
        for life in chaos.lives:
            if became[life.user_id] != expected[life.recipe]:
                wrong[life.recipe].append(became[life.user_id])
        assert not wrong, _told(wrong, expected)
        assert min(fates.values()) > 0, fates
        assert await second.rows("select * from failed_jobs") == []
        unsettled = "select kind, object_id, status from refreshes where status <> 'done'"
        assert await second.rows(unsettled) == []
    finally:
        await first.close()
        await second.close()


def _told(wrong: dict[str, list[Any]], expected: dict[str, Outcome]) -> str:
    lines = [f"seed {SEED}: {sum(map(len, wrong.values()))} of {LIVES} lives ended otherwise"]
    for recipe, found in wrong.items():
        lines.append(f"--- {recipe}: {len(found)}")
        for name in sorted(expected[recipe].keys() | found[0].keys()):
            if found[0].get(name) != expected[recipe].get(name):
                lines += [f"{name} orderly: {expected[recipe].get(name)}", f"{name} became:  {found[0].get(name)}"]
    return "\n".join(lines)
