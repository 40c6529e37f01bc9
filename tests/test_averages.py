"""Averages of parameters against plain means, torch's own moving average and what a step's weight must fall to."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from textvae.averages import Averaged, Exponential, Uniform
from textvae.schedules import Horizon

HORIZON = Horizon(100, 1000)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    made[2].weight = nn.Parameter(made[0].weight.detach().T.clone())
    return made


def walk(made: nn.Module, steps: int):
    """Moves the parameters at random and yields them."""
    noise = torch.Generator().manual_seed(1)
    for step in range(steps):
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=noise))
        made[1].running_mean.fill_(float(step))
        made[1].num_batches_tracked.fill_(step)
        yield step, copy.deepcopy(made.state_dict())


def weights(average, number: int) -> list[float]:
    """What each of the first `number` sets of parameters counts in the average of them all."""
    found: list[float] = []
    for i in range(number):
        share = average.share(i)
        found = [w * (1 - share) for w in found] + [share]
    return found


def test_uniform_average_is_the_mean_of_the_steps_that_count():
    made, average = model(), Averaged(Uniform(HORIZON, after=4, every=3))
    seen = []
    for step, state in walk(made, 20):
        average.after_step(step, made)
        if step >= 4 and step % 3 == 2:
            seen.append(state)
    assert len(seen) == 5
    found = average.standing_for(made).state_dict()
    for name, tensor in found.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([state[name] for state in seen]).mean(0))
    assert found["1.num_batches_tracked"] == 17  # counts have no mean: the last one's


def test_exponential_average_is_torchs_own_after_its_beginning():
    decay = math.exp(-1 / 8)
    made = model()
    average = Averaged(Exponential(HORIZON, over=8, every=1))
    reference = AveragedModel(made, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for step, _ in walk(made, 200):
        average.after_step(step, made)
        reference.update_parameters(made)
    for ours, torchs in zip(average.standing_for(made).parameters(), reference.module.parameters(), strict=True):
        torch.testing.assert_close(ours, torchs)  # the beginnings weigh exp(-25)


@pytest.mark.parametrize("every", [1, 5])
def test_a_steps_weight_falls_to_one_over_e_over_the_time_said_whatever_counts(every):
    found = weights(Exponential(HORIZON, over="1 epoch", every=every), 400)
    assert sum(found) == pytest.approx(1.0)
    assert found[-1 - 100 // every] / found[-1] == pytest.approx(math.exp(-1))
    assert weights(Exponential(HORIZON, over="1 epoch", every=every), 10) == pytest.approx([0.1] * 10)


def test_until_the_first_step_that_counts_the_model_stands_for_itself():
    made, average = model(), Averaged(Uniform(HORIZON, after="0.1 epochs", every=1))
    for step, _ in walk(made, 10):
        average.after_step(step, made)
        assert average.standing_for(made) is made
    average.after_step(10, made)
    assert average.standing_for(made) is not made
    average.begin_anew()
    assert average.standing_for(made) is made


def test_the_average_is_no_part_of_the_training():
    made, average = model(), Averaged(Exponential(HORIZON, over=4, every=1))
    made(torch.randn(5, 3)).sum().backward()
    for step, state in walk(made, 6):
        average.after_step(step, made)
        for name, tensor in made.state_dict().items():
            assert torch.equal(tensor, state[name])
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert not any(parameter.requires_grad for parameter in average.standing_for(made).parameters())


def test_tied_weights_stay_tied():
    made = nn.ModuleList([nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)])
    made[1].weight = made[0].weight
    average = Averaged(Uniform(HORIZON, every=1))
    average.after_step(0, made)
    averaged = average.standing_for(made)
    assert averaged[1].weight is averaged[0].weight


def test_saved_and_read_back_it_goes_on_the_same():
    made = model()
    whole, cut = (Averaged(Exponential(HORIZON, over=4, every=2)) for _ in range(2))
    for step, _ in walk(made, 30):
        whole.after_step(step, made)
        cut.after_step(step, made)
        if step in (0, 7, 12):
            state = cut.state_dict()
            cut = Averaged(Exponential(HORIZON, over=4, every=2))
            cut.load_state_dict(copy.deepcopy(state), made)
    for one, other in zip(whole.standing_for(made).parameters(), cut.standing_for(made).parameters(), strict=True):
        assert torch.equal(one, other)
