from datetime import timedelta

from services.detector.domain.rule import Chains, Rule, detect
from services.detector.domain.snapshots import compare
from tests.detector.chains import SESSION, header, row, table

SMALL = row(strike=120.0)


def step(known, *chains):
    laid = Chains.of([(head, table(rows)) for head, rows in chains])
    found = detect(laid, Rule())
    change, kept = compare(laid, found, known)
    return change.tolist(), kept


def test_in_the_first_snapshot_the_whole_volume_is_new():
    change, kept = step({}, (header(), [row(volume=2_000.0)]))
    assert change == [2_000]
    assert kept["AAPL"].as_of == header().as_of


def test_later_snapshots_show_what_was_traded_since():
    _, known = step({}, (header(), [row(volume=2_000.0)]))
    change, kept = step(known, (header(minute=1), [row(volume=2_300.0), SMALL]))
    assert change == [300, 2_000]
    assert kept["AAPL"].volume.tolist() == [2_300, 2_000]


def test_a_volume_that_did_not_meet_the_rule_still_counts_as_known():
    _, known = step({}, (header(), [row(volume=7.0)]))
    assert step(known, (header(minute=1), [row(volume=1_000.0)]))[0] == [993]


def test_a_correction_downwards_is_no_change():
    _, known = step({}, (header(), [row(volume=2_000.0)]))
    change, kept = step(known, (header(minute=1), [row(volume=1_500.0)]))
    assert change == [0]
    assert kept["AAPL"].volume.tolist() == [1_500]


def test_a_new_session_starts_from_nothing():
    _, known = step({}, (header(), [row(volume=2_000.0)]))
    tomorrow = header(session=SESSION + timedelta(days=1), minute=1_440)
    change, kept = step(known, (tomorrow, [row(volume=900.0)]))
    assert change == [900]
    assert kept["AAPL"].session == tomorrow.session


def test_a_late_snapshot_does_not_move_the_known_one_backwards():
    _, known = step({}, (header(minute=2), [row(volume=2_000.0)]))
    for minute in (1, 2):
        change, kept = step(known, (header(minute=minute), [row(volume=1_900.0), SMALL]))
        assert change == [0, 2_000]
        assert kept == {}


def test_a_late_session_does_not_replace_a_newer_one():
    _, known = step({}, (header(), [row()]))
    change, kept = step(known, (header(session=SESSION - timedelta(days=1), minute=5), [row(volume=900.0)]))
    assert change == [900]
    assert kept == {}


def test_snapshots_of_one_symbol_in_one_batch_follow_each_other():
    chains = [(header("A", minute=minute), [row(volume=1_000.0 + 100 * minute)]) for minute in range(4)]
    other = (header("B"), [row(volume=5_000.0, strike=7.0)])
    change, kept = step({}, chains[0], other, *chains[1:])
    assert change == [1_000, 5_000, 100, 100, 100]
    assert (kept["A"].as_of, kept["B"].as_of) == (chains[3][0].as_of, other[0].as_of)


def test_batches_of_any_cut_give_the_same_changes():
    chains = [(header("A", minute=minute), [row(volume=1_000.0 + minute**2)]) for minute in (0, 3, 1, 5, 5, 4)]
    at_once, kept = step({}, *chains)
    one_by_one, known = [], {}
    for chain in chains:
        change, newer = step(known, chain)
        one_by_one += change
        known |= newer
    assert at_once == one_by_one
    assert kept["A"].as_of == known["A"].as_of
