"""Steps that a device leaves out by itself are those that the program would have left out, and it learns which."""

import copy

import pytest
import torch
from accelerate import Accelerator

from textvae.optimizers import OPTIMIZERS
from textvae.text.batching import make_step
from textvae.training.outcomes import Outcome, Outcomes

STEP = make_step([[5, 6], [7]], 0, 0, 1, 1)
KINDS = [
    {"kind": "sgd", "lr": 0.1},
    {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    {"kind": "adam"},
    {"kind": "adamw"},
]


def taken(kind: dict, finite: list[bool], *, ahead: bool, parts: str = "") -> tuple[list[torch.Tensor], list[bool]]:
    """Parameters after steps of which some have no finite gradient, and what is known of each step in the end.

    A step of `parts` has gradients for the weight ("w") or the bias ("b") alone.
    """
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(OPTIMIZERS.build(kind, list(model.parameters()), path="optimizer"))
    outcomes = Outcomes(optimizer, accelerator, ahead=ahead)
    for number, whole in enumerate(finite):
        for name, parameter in model.named_parameters():
            gradient = torch.randn_like(parameter) if whole else torch.full_like(parameter, torch.nan)
            parameter.grad = gradient if parts[number : number + 1] in ("", name[0]) else None
        answer = outcomes.attempt(torch.tensor(whole))
        assert isinstance(answer, torch.Tensor) == ahead
        outcomes.record(answer, number, STEP)
    known = outcomes.known(everything=True)
    assert [outcome.number for outcome in known] == list(range(len(finite)))
    return [parameter.detach() for parameter in model.parameters()], [outcome.taken for outcome in known]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("finite", ["1111", "0111", "1001", "0010", "0000"])
@pytest.mark.parametrize("parts", ["", "wbbw"], ids=["whole steps", "steps of one part"])
def test_parameters_are_those_of_a_program_that_waits(kind, finite, parts):
    whole = [answer == "1" for answer in finite]
    waited, known = taken(copy.deepcopy(kind), whole, ahead=False, parts=parts)
    ahead, known_later = taken(copy.deepcopy(kind), whole, ahead=True, parts=parts)
    assert known == known_later == whole
    for mine, theirs in zip(ahead, waited):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("parts", ["", "wbbw"], ids=["whole steps", "steps of one part"])
def test_momenta_are_those_of_torchs_own_plain_form(parts):
    kind = {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    ours, _ = taken(kind, [True] * 4, ahead=True, parts=parts)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, foreach=False)
    for number in range(4):
        for name, parameter in model.named_parameters():
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient if parts[number : number + 1] in ("", name[0]) else None
        plain.step()
    for mine, theirs in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-6, atol=1e-7)


def test_all_but_the_newest_are_known_and_each_is_told_once():
    model = torch.nn.Linear(3, 2)
    optimizer = OPTIMIZERS.build({"kind": "sgd"}, list(model.parameters()), path="optimizer")
    outcomes = Outcomes(optimizer, Accelerator(cpu=True), ahead=True)
    for number in (1, 2, 3):
        outcomes.record(torch.tensor(number != 2), number, STEP)
    assert outcomes.known() == [Outcome(True, 1, STEP), Outcome(False, 2, STEP)]
    assert outcomes.known() == []
    outcomes.record(True, 4, STEP)  # one that was waited for: what was asked before comes first
    assert [outcome.number for outcome in outcomes.known()] == [3, 4]
    assert outcomes.known(everything=True) == []


def test_an_optimiser_that_takes_no_answer_is_waited_for():
    model = torch.nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    outcomes = Outcomes(torch.optim.SGD(model.parameters(), lr=1.0), Accelerator(cpu=True), ahead=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    assert outcomes.attempt(torch.tensor(False)) is False
    assert all(torch.equal(parameter, was) for parameter, was in zip(model.parameters(), before))
