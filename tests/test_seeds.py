"""Random states that are a function of a number, and the caller's that stay where they were."""

import pytest
import torch

from textvae.seeds import drawn_from, set_aside


def test_within_it_draws_are_a_seeds_and_the_callers_state_is_put_back():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with set_aside(5):
        assert torch.equal(torch.randn(3), expected)
    assert torch.equal(torch.get_rng_state(), before)

    def stopped():
        with set_aside(5):
            raise ValueError(f"stop at {torch.randn(3)}")

    with pytest.raises(ValueError, match="stop"):
        stopped()
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_from_a_generator_move_that_one_alone():
    torch.manual_seed(1)
    before, generator = torch.get_rng_state(), torch.Generator().manual_seed(2)
    drawn = []
    for _ in range(2):
        with drawn_from(generator):
            drawn.append(torch.randn(3))
    assert not torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)
    with drawn_from(torch.Generator().manual_seed(2)):
        assert torch.equal(torch.randn(3), drawn[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_state_is_put_back_too():
    torch.cuda.manual_seed(1)
    before = torch.cuda.get_rng_state()
    with set_aside(5, "cuda"):
        first = torch.randn(3, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with set_aside(5):  # of the CPU alone
        pass
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.cuda.manual_seed(5)
    assert torch.equal(torch.randn(3, device="cuda"), first)
