from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.detector.domain.board import merge, top_x
from shared.contracts.detector import LeaderboardEntry


def entry(contract="A", score=50.0, volume=1):
    return LeaderboardEntry(
        rank=0,
        contract=contract,
        symbol="S",
        score=score,
        premium_usd=Decimal(1),
        volume=volume,
        open_interest=1,
        simulated=True,
    )


entries = st.lists(
    st.builds(entry, st.sampled_from("ABCDEFGH"), st.integers(0, 100).map(float)),
    max_size=8,
    unique_by=lambda each: each.contract,
)


@pytest.mark.parametrize(
    ("symbols", "places"),
    [(0, 5), (1, 5), (499, 5), (500, 5), (501, 6), (600, 6), (700, 7), (2_900, 29), (6_000, 60)],
)
def test_a_minute_has_five_places_or_one_in_a_hundred_symbols(symbols, places):
    assert top_x(symbols, 5, 0.01) == places


def test_a_contract_has_one_place_at_its_best_score():
    board = merge([entry("A", 60), entry("B", 70)], [entry("A", 90), entry("B", 10)], 100)
    assert [(each.rank, each.contract, each.score) for each in board] == [(1, "A", 90), (2, "B", 70)]


def test_of_equal_scores_the_newer_stands():
    assert merge([entry(volume=1)], [entry(volume=2)], 100)[0].volume == 2


@given(st.lists(entries, max_size=6), st.integers(1, 6), st.randoms())
def test_the_order_of_minutes_does_not_change_the_board(minutes, size, random):
    shuffled = list(minutes)
    random.shuffle(shuffled)

    def folded(parts):
        board = ()
        for part in parts:
            board = merge(board, part, size)
        return [(each.rank, each.contract, each.score) for each in board]

    assert folded(minutes) == folded(shuffled)


@given(entries, entries, st.integers(1, 6))
def test_a_board_is_ranked_best_first_and_never_longer_than_its_size(first, second, size):
    board = merge(first, second, size)
    assert [each.rank for each in board] == list(range(1, len(board) + 1))
    assert [each.score for each in board] == sorted((each.score for each in board), reverse=True)
    assert len(board) == min(size, len({each.contract for each in (*first, *second)}))
