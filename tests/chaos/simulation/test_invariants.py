"""The checker itself: it takes a sound history, and rejects one with a duplicate, a loss, a reorder and the rest."""

from dataclasses import replace
from uuid import UUID

from tests.chaos.simulation.invariants import (
    Job,
    Observed,
    Performance,
    Row,
    Seen,
    at_rest,
    done_or_parked,
    in_order,
    offsets_behind_what_is_settled,
    outside,
    told,
)

A, B, C, D = (UUID(int=n) for n in range(1, 5))
DEAD = Job((0, 2), b"k", C, "dead", due=False)
SOUND = Observed(
    "ledger",
    log=(
        Seen((0, 0), b"k", A, "done"),
        Seen((0, 1), b"k", B, "done"),
        Seen((0, 2), b"k", C, "parked"),
        Seen((0, 3), b"k", D, "done"),
        Seen((0, 4), b"k", A, "done"),
        Seen((0, 5), b"k", None, "passed"),
    ),
    effects=(A, B, D),
    jobs=(DEAD,),
    inbox=frozenset({A, B, C, D}),
    offsets={0: 6},
    shown={0: 6},
)
JOB = UUID(int=9)


def wrong(seen: Observed) -> list[str]:
    return [
        *offsets_behind_what_is_settled(seen),
        *done_or_parked(seen),
        *in_order(seen),
        *at_rest(seen),
    ]


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


def test_a_sound_history_is_taken() -> None:
    assert wrong(SOUND) == []


def test_a_duplicate_is_found() -> None:
    assert any("a duplicate" in one for one in wrong(replace(SOUND, effects=(A, B, B, D))))


def test_a_loss_is_found() -> None:
    assert "lost" in only(wrong(replace(SOUND, effects=(A, D))))


def test_a_reorder_is_found() -> None:
    assert "out of order" in only(wrong(replace(SOUND, effects=(B, A, D))))


def test_an_event_that_is_both_done_and_dead_is_found() -> None:
    seen = replace(SOUND, log=(*SOUND.log[:2], Seen((0, 2), b"k", C, "either"), *SOUND.log[3:]), effects=(A, B, C, D))
    assert "both" in only(wrong(seen))


def test_a_refused_event_that_took_effect_is_found() -> None:
    assert "should have been refused" in only(wrong(replace(SOUND, jobs=(), effects=(A, B, C, D))))


def test_an_offset_past_an_unsettled_record_is_found() -> None:
    assert "past the unsettled 1" in only(
        list(offsets_behind_what_is_settled(replace(SOUND, inbox=frozenset({A, C, D}))))
    )


def test_an_offset_that_kafka_was_told_too_early_is_found() -> None:
    assert "Postgres knows less" in only(wrong(replace(SOUND, shown={0: 7})))


def test_a_record_that_nobody_read_is_found() -> None:
    assert "read up to 5" in only(wrong(replace(SOUND, offsets={0: 5}, shown={})))


def test_a_stranded_row_is_found_and_one_behind_a_held_row_is_not() -> None:
    stranded = Job((0, 3), b"k", D, "waiting", due=False)
    seen = replace(SOUND, effects=(A, B), jobs=(DEAD, stranded))
    assert any("stranded" in one for one in wrong(seen))
    assert wrong(replace(seen, jobs=(replace(DEAD, status="held"), stranded))) == []


def test_claimed_rows_are_performed_once_or_marked() -> None:
    done = [Row(JOB, "done", leased=False)]
    once, again = Performance(JOB, uncertain=False), Performance(JOB, uncertain=True)
    assert list(outside(done, [once], "resend", [JOB])) == []
    assert list(outside(done, [once, again], "resend", [JOB])) == []
    assert "a duplicate" in only(list(outside(done, [once, once], "resend", [JOB])))
    assert "leave it" in only(list(outside(done, [once, again], "leave", [JOB])))
    assert "lost" in only(list(outside(done, [], "resend", [JOB])))
    assert "recorded 2 times" in only(list(outside(done, [once], "resend", [JOB, JOB])))
    assert "of the dead" in only(list(outside([Row(JOB, "started", leased=True)], [once], "leave", [JOB])))


def test_what_lies_in_kafka_is_what_was_made_in_its_order() -> None:
    made = [(b"k", A), (b"k", B)]
    assert list(told(made, [(b"k", A), (b"k", A), (b"k", B), (b"k", A)], 0)) == []
    assert "out of order" in only(list(told(made, [(b"k", B), (b"k", A)], 0)))
    assert "1 arrived" in only(list(told(made, [(b"k", A)], 0)))
    assert "holds 3 rows" in only(list(told(made, made, 3)))
