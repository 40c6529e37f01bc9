"""Controllers: hand-made tables, a plant with a known answer, a constraint with a known multiplier, exact resuming."""

import io
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textvae.control import GECO, PID
from textvae.errors import UserError
from textvae.schedules import SCHEDULES, Horizon

HORIZON = Horizon(steps_per_epoch=100, total_steps=1000)
KINDS = ["pid", "geco"]


def run(controller, values, start=0):
    return [controller(step, torch.as_tensor(value)) for step, value in enumerate(values, start=start)]


@pytest.mark.parametrize(
    ("section", "values", "weights"),
    [
        # e = -20, 0, 3; P = kp / (1 + exp(e)); I = 0.02, 0.02, 0.017.
        (
            {"kind": "pid", "target": 10.0, "kp": 0.01, "ki": 0.001},
            [30.0, 10.0, 7.0],
            [0.02 + 0.009999999979388463, 0.02 + 0.005, 0.017 + 0.0004742587317756678],
        ),
        ({"kind": "pid", "target": 10.0, "ki": 0.001, "min": 0.1, "max": 0.5}, [30.0, 10.0], [0.13, 0.125]),
        ({"kind": "pid", "target": 10.0, "kp": 0.0, "ki": 0.01, "max": 0.5}, [30.0, 90.0, 9.0], [0.2, 0.5, 0.49]),
        (
            {"kind": "pid", "target": 10.0, "kp": 0.0, "ki": 0.1, "min": 0.2, "max": 0.5},
            [0.0, 0.0, 11.0],
            [0.2, 0.2, 0.3],
        ),
        # C = 2, 0, -2; M = 2, 1, -1/2; the exponents add up to 0.2, 0.3, 0.25.
        (
            {"kind": "geco", "target": 2.0, "rate": 0.1, "decay": 0.5},
            [4.0, 2.0, 0.0],
            [1.2214027581601699, 1.3498588075760032, 1.2840254166877414],
        ),
        ({"kind": "geco", "target": 2.0, "rate": 1.0, "decay": 0.0, "max": 3.0}, [4.0, 1.0], [3.0, 3.0 / math.e]),
        ({"kind": "geco", "target": 2.0, "rate": 1.0, "decay": 0.0, "min": 0.5}, [1.0, 3.0], [0.5, 0.5 * math.e]),
    ],
)
def test_weights_follow_their_table(section, values, weights):
    assert run(SCHEDULES.build(section, HORIZON), values) == pytest.approx(weights, abs=1e-9)


@pytest.mark.parametrize("start_kl", [0.5, 18.0])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_pid_drives_a_plant_to_its_target(start_kl, noise):
    a, b, target = 10.0, 0.5, 8.0  # KL(weight) = a / (weight + b), so the weight at the target is 0.75
    controller = PID(HORIZON, target=target, ki=0.001)
    generator = torch.Generator().manual_seed(0)
    kl, history = start_kl, []
    for step in range(4000):
        weight = controller(step, torch.tensor(kl) + noise * torch.randn((), generator=generator))
        kl += 0.2 * (a / (weight + b) - kl)  # the model takes some steps to follow
        history.append((kl, weight))
    kls, weights = torch.tensor(history[2000:]).T
    assert float(kls.mean()) == pytest.approx(target, abs=1e-6 if noise == 0 else 0.1)
    assert float(weights.mean()) == pytest.approx(a / target - b, abs=1e-5 if noise == 0 else 0.02)


def test_pid_does_not_wind_up_at_its_bounds():
    controller = PID(HORIZON, target=8.0)
    assert run(controller, [1000.0] * 500)[-1] == 1.0
    assert controller(500, torch.tensor(1.0)) < 1.0
    assert run(controller, [0.0] * 20_000, start=501)[-1] == 0.0
    assert controller(30_000, torch.tensor(200.0)) > 0.01


def test_the_target_goes_up_in_a_straight_line():
    controller = SCHEDULES.build({"kind": "pid", "target": 10.0, "start": 2.0, "over": "2 epochs"}, HORIZON)
    table = {0: 2.0, 50: 4.0, 100: 6.0, 200: 10.0, 900: 10.0}
    assert [controller.target_at(step) for step in table] == pytest.approx(list(table.values()))
    assert SCHEDULES.build({"kind": "pid", "target": 10.0}, HORIZON).target_at(0) == 10.0


def test_geco_finds_the_lagrange_multiplier():
    # min (x - 3)^2 with x^2 <= 1: x = 1, where 2 (x - 3) + 2 w x = 0 gives w = 2.
    controller = GECO(HORIZON, target=1.0, rate=0.01, decay=0.9)
    x = 0.0
    for step in range(5000):
        weight = controller(step, torch.tensor(x**2, dtype=torch.float64))
        x -= 0.05 * (2 * (x - 3) + 2 * weight * x)
    assert x**2 == pytest.approx(1.0, abs=1e-6)
    assert weight == pytest.approx(2.0, abs=1e-5)


def test_geco_asks_nothing_of_a_term_that_stays_below_by_itself():
    controller = GECO(HORIZON, target=100.0, rate=0.01, min=1e-4)
    x = 0.0
    for step in range(2000):
        weight = controller(step, torch.tensor(x**2))
        x -= 0.05 * (2 * (x - 3) + 2 * weight * x)
    assert weight == pytest.approx(1e-4)
    assert x == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [0, 1, 57])
def test_a_resumed_controller_goes_on_to_the_bit(kind, cut):
    values = (20 * torch.rand(200, generator=torch.Generator().manual_seed(1))).tolist()
    whole = run(SCHEDULES.build({"kind": kind}, HORIZON), values)
    first = SCHEDULES.build({"kind": kind}, HORIZON)
    begun = run(first, values[:cut])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = SCHEDULES.build({"kind": kind}, HORIZON)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second(cut - 1) == first(cut - 1)
    assert begun + run(second, values[cut:], start=cut) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_first_value_of_a_new_step_moves_the_weight(kind):
    values = [20.0, 3.0, 15.0, 9.0]
    plain = run(SCHEDULES.build({"kind": kind}, HORIZON), values)
    controller = SCHEDULES.build({"kind": kind}, HORIZON)
    for step, (value, expected) in enumerate(zip(values, plain)):
        before = controller(step)
        assert before == controller(step + 5)
        controller.eval()
        assert controller(step, torch.tensor(1e6)) == before
        controller.train()
        assert controller(step, torch.tensor(value)) == expected
        assert controller(step, torch.tensor(1e6)) == expected
        assert controller(step - 1, torch.tensor(1e6)) == expected
        assert controller(step) == expected
    assert len(set(plain)) > 1


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=1, max_size=8),
)
def test_no_value_makes_the_weight_leave_its_bounds(kind, values):
    controller = SCHEDULES.build({"kind": kind, "min": 0.01, "max": 3.0}, HORIZON)
    tensors = [torch.tensor(value, dtype=torch.float64) for value in values]
    weights = run(controller, tensors) + run(controller, [9.0, 1.0, 30.0], start=len(values))
    assert all(math.isfinite(weight) and 0.01 <= weight <= 3.0 for weight in weights)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_leaves_the_state_alone(kind, bad):
    clean, hit = (SCHEDULES.build({"kind": kind}, HORIZON) for _ in range(2))
    run(clean, [20.0])
    run(hit, [20.0, bad])
    assert hit(1) == clean(1)
    assert hit(2, torch.tensor(5.0)) == clean(2, torch.tensor(5.0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_of_a_batch_is_its_mean(kind):
    one, many = (SCHEDULES.build({"kind": kind}, HORIZON) for _ in range(2))
    rows = torch.tensor([10.0, 14.0, 30.0], requires_grad=True)
    assert many(0, rows) == one(0, torch.tensor(18.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_moved_to_another_precision_leaves_the_state_exact(kind):
    controller = SCHEDULES.build({"kind": kind}, HORIZON).to(torch.bfloat16)
    run(controller, [20.0, 3.0])
    assert controller.weight.dtype == torch.float64
    assert controller(1) == run(SCHEDULES.build({"kind": kind}, HORIZON), [20.0, 3.0])[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_before_the_first_value_is_within_the_bounds(kind):
    for low, high in itertools.combinations([0.1, 0.5, 4.0], 2):
        assert low <= SCHEDULES.build({"kind": kind, "min": low, "max": high}, HORIZON)(0) <= high


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_in_the_wrong_order_and_numbers_out_of_range_are_refused(kind):
    with pytest.raises(UserError, match=r"min \(2\) is above max \(1\)"):
        SCHEDULES.build({"kind": kind, "min": 2.0, "max": 1.0}, HORIZON)
    with pytest.raises(UserError, match="target: got -1"):
        SCHEDULES.build({"kind": kind, "target": -1.0}, HORIZON)
