"""The arithmetic of a circuit's worth: shares between nothing and everything, and chance beside."""

import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from remote.circuits.random_sets import TOLERANCE, draw
from remote.circuits.worth import Chance, Outcome, Span, completeness, necessity

NUMBERS = st.floats(-50, 50).map(lambda number: round(number, 3))


@st.composite
def spans(draw_value):
    full, empty = draw_value(NUMBERS), draw_value(NUMBERS)
    assume(abs(full - empty) > 0.1)
    return Span(full, empty)


def test_the_shares_are_those_of_the_definition():
    span, outcome = [Span(full=8.0, empty=-2.0)], [Outcome(kept=5.5, removed=1.0)]
    assert completeness(span, outcome) == 0.75
    assert necessity(span, outcome) == 0.7


@given(spans())
def test_everything_is_worth_one_and_nothing_is_worth_zero(span):
    everything = [Outcome(kept=span.full, removed=span.empty)]
    nothing = [Outcome(kept=span.empty, removed=span.full)]
    assert completeness([span], everything) == necessity([span], everything) == 1
    assert completeness([span], nothing) == necessity([span], nothing) == 0


@given(spans(), NUMBERS, NUMBERS)
def test_what_is_complete_leaves_the_rest_unnecessary(span, kept, removed):
    """The set's necessity is what the rest of the features alone lack of completeness."""
    outcome, of_the_rest = Outcome(kept, removed), Outcome(removed, kept)
    assert necessity([span], [outcome]) == pytest.approx(
        1 - completeness([span], [of_the_rest]), abs=1e-9
    )


@given(spans(), NUMBERS, NUMBERS, st.floats(0.1, 10), NUMBERS)
def test_neither_unit_nor_zero_of_the_metric_matters(span, kept, removed, scale, shift):
    def moved(number):
        return scale * number + shift

    other = Span(moved(span.full), moved(span.empty))
    assume(abs(other.full - other.empty) > 0.1)
    outcome, moved_outcome = Outcome(kept, removed), Outcome(moved(kept), moved(removed))
    for share in (completeness, necessity):
        assert share([other], [moved_outcome]) == pytest.approx(
            share([span], [outcome]), rel=1e-6, abs=1e-6
        )


@given(st.lists(st.tuples(spans(), NUMBERS, NUMBERS), min_size=1, max_size=6))
def test_over_prompts_the_share_is_that_of_the_mean_metrics(cases):
    all_spans = [span for span, *_ in cases]
    outcomes = [Outcome(kept, removed) for _, kept, removed in cases]
    full, empty, kept = (
        math.fsum(numbers) / len(cases)
        for numbers in (
            [span.full for span in all_spans],
            [span.empty for span in all_spans],
            [outcome.kept for outcome in outcomes],
        )
    )
    assume(abs(full - empty) > 0.01)
    expected = (kept - empty) / (full - empty)
    assert completeness(all_spans, outcomes) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_where_the_features_change_nothing_there_is_no_share():
    span, outcome = [Span(3.0, 3.0 + 1e-6)], [Outcome(1.0, 2.0)]
    assert completeness(span, outcome) is None
    assert necessity(span, outcome) is None


def test_chance_has_mean_range_and_how_many_sets_have_less():
    chance = Chance.beside(0.5, [0.1, 0.5, 0.3, 0.9])
    assert (chance.mean, chance.low, chance.high) == (pytest.approx(0.45), 0.1, 0.9)
    assert (chance.below, chance.n_sets) == (2, 4)
    assert chance.p_value == 3 / 5
    assert Chance.beside(0.5, [0.5 - 1e-6]).below == 0  # the same within rounding


@given(st.floats(-2, 2), st.lists(st.floats(-2, 2), min_size=1, max_size=30))
def test_chance_is_the_rank_among_the_random_sets(value, randoms):
    chance = Chance.beside(value, randoms)
    assert chance.below == sum(other < value - 1e-4 for other in randoms)
    assert chance.low <= chance.mean + 1e-9
    assert chance.mean <= chance.high + 1e-9
    assert 0 < chance.p_value <= 1


UNIVERSES = st.lists(st.floats(0.0, 20), min_size=1, max_size=60)


@given(UNIVERSES, st.data(), st.integers(0, 5), st.integers(0, 2**32))
def test_random_sets_have_as_many_features_each_once(strengths, data, count, seed):
    everything = st.sets(st.sampled_from(range(len(strengths))), min_size=1)
    chosen = frozenset(data.draw(everything))
    sets = draw(strengths, chosen, count, random.Random(seed))
    assert len(sets) == count
    for found in sets:
        assert len(found) == len(chosen)
        assert found <= set(range(len(strengths)))
    assert sets == draw(strengths, chosen, count, random.Random(seed))


@given(st.lists(st.floats(0.5, 8), min_size=8, max_size=30), st.data())
def test_random_sets_are_as_strong_where_there_are_such(levels, data):
    """Every feature has three of its own strength beside it, so that there are equal sets."""
    strengths = [level for level in levels for _ in range(4)]
    picked = data.draw(st.sets(st.sampled_from(range(len(levels))), min_size=4, max_size=12))
    chosen = frozenset(4 * level for level in picked)
    wanted = math.fsum(strengths[n] for n in chosen)
    for found in draw(strengths, chosen, 3, random.Random(1)):
        assert math.fsum(strengths[n] for n in found) == pytest.approx(wanted, rel=TOLERANCE + 1e-9)


def test_among_equally_strong_features_each_is_drawn_as_often():
    sets = draw([1.0] * 10, frozenset({0, 1}), 2_000, random.Random(0))
    counts = [sum(n in found for found in sets) for n in range(10)]
    assert all(330 < count < 470 for count in counts)  # 400 each; a deviation is 18


def test_the_strongest_set_is_compared_with_the_nearest_there_are():
    strengths = [float(2**n) for n in range(10)]
    chosen = frozenset({9})
    sets = draw(strengths, chosen, 5, random.Random(0))
    assert all(found == chosen for found in sets)
