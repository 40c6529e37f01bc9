"""Schedules as tables of values, worked out by hand from the papers' formulas."""

import math

import pytest

from textvae.errors import UserError
from textvae.schedules import DECAYS, RATES, SCHEDULES, Horizon

HORIZON = Horizon(steps_per_epoch=100, total_steps=1000)


def values(registry, section, steps):
    schedule = registry.build(section, HORIZON)
    return [schedule(step) for step in steps]


@pytest.mark.parametrize(
    ("section", "table"),
    [
        ({"kind": "constant", "value": 0.3}, {0: 0.3, 999: 0.3}),
        ({"kind": "linear", "over": 200}, {0: 0.0, 50: 0.25, 200: 1.0, 900: 1.0}),
        ({"kind": "linear", "start": 0.1, "end": 1.0, "over": "10 epochs"}, {0: 0.1, 500: 0.55, 1000: 1.0}),
        ({"kind": "linear"}, {0: 0.0, 500: 0.5, 1000: 1.0}),
        ({"kind": "linear", "after": "1 epoch", "over": 100}, {0: 0.0, 100: 0.0, 150: 0.5, 200: 1.0}),
        ({"kind": "cosine", "over": 100}, {0: 0.0, 25: (1 - math.sqrt(0.5)) / 2, 50: 0.5, 100: 1.0, 300: 1.0}),
        (
            {"kind": "logistic", "midpoint": 2500, "steepness": 0.0025},
            {0: 1 / (1 + math.exp(6.25)), 2500: 0.5, 5000: 1 / (1 + math.exp(-6.25)), 10**9: 1.0},
        ),
        (
            {"kind": "cyclical", "cycles": 4, "ramp": 0.5},
            {0: 0.0, 50: 0.4, 125: 1.0, 249: 1.0, 250: 0.0, 300: 0.4, 375: 1.0, 999: 1.0, 1000: 1.0, 5000: 1.0},
        ),
        (
            {"kind": "cyclical", "cycles": 2, "ramp": 1.0, "start": 0.2, "end": 0.6, "over": "2 epochs"},
            {0: 0.2, 50: 0.4, 100: 0.2, 150: 0.4, 200: 0.6},
        ),
        (
            {"kind": "cyclical", "cycles": 1, "ramp": 0.5, "shape": "cosine", "over": 100},
            {0: 0.0, 25: 0.5, 50: 1.0, 99: 1.0},
        ),
    ],
)
def test_weights_follow_their_table(section, table):
    assert values(SCHEDULES, section, table) == pytest.approx(list(table.values()), abs=1e-12)


@pytest.mark.parametrize(
    ("section", "table"),
    [
        ({"kind": "constant"}, {0: 1.0, 999: 1.0}),
        ({"kind": "constant", "warmup": 4}, {0: 0.2, 3: 0.8, 4: 1.0, 9: 1.0}),
        ({"kind": "linear", "end": 0.5}, {0: 1.0, 500: 0.75, 1000: 0.5, 2000: 0.5}),
        ({"kind": "linear", "warmup": "1 epoch"}, {0: 1 / 101, 99: 100 / 101, 100: 1.0, 550: 0.5, 1000: 0.0}),
        ({"kind": "cosine"}, {0: 1.0, 500: 0.5, 1000: 0.0}),
        ({"kind": "cosine", "cycles": 4}, {0: 1.0, 125: 0.5, 250: 1.0, 375: 0.5, 1000: 0.0}),
    ],
)
def test_learning_rates_follow_their_table(section, table):
    assert values(RATES, section, table) == pytest.approx(list(table.values()), abs=1e-12)


@pytest.mark.parametrize("kind", list(SCHEDULES))
def test_every_weight_is_finite_and_never_negative(kind):
    schedule = SCHEDULES.build({"kind": kind}, HORIZON)
    assert all(0.0 <= schedule(step) <= 1.0 for step in [0, 1, 17, 500, 1000, 10**6, 10**12])


def test_plateau_waits_decays_and_stops():
    plateau = DECAYS.build({"kind": "plateau", "patience": 2, "after": "3 epochs", "decays": 2}, HORIZON)
    assert plateau(299, stalled=9, done=0) == "keep"
    assert plateau(300, stalled=1, done=0) == "keep"
    assert plateau(300, stalled=2, done=0) == "decay"
    assert plateau(300, stalled=2, done=2) == "stop"


@pytest.mark.parametrize("duration", ["ten epochs", "3 days", "-1 epochs", 0, "", "1 2 3"])
def test_durations_that_are_none_are_refused(duration):
    with pytest.raises(UserError, match="duration is a number of steps"):
        SCHEDULES.build({"kind": "linear", "over": duration}, HORIZON)


def test_a_stream_without_length_asks_for_steps():
    stream = Horizon(None, None)
    with pytest.raises(UserError, match="use steps"):
        SCHEDULES.build({"kind": "linear", "over": "2 epochs"}, stream)
    with pytest.raises(UserError, match="max_steps"):
        SCHEDULES.build({"kind": "cyclical"}, stream)
    assert SCHEDULES.build({"kind": "linear", "over": 10}, stream)(5) == 0.5
