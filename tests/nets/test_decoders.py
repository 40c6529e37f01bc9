"""One implementation of a step: T single steps equal one call over T; nothing sees the future."""

import itertools

import pytest
import torch

from textvae.nets.decoders import RecurrentDecoder

Z_TO = [["state"], ["input"], ["state", "input"], ["output"], ["layers", "output"], ["state", "layers", "output"]]
CASES = list(itertools.product(["lstm", "gru"], [1, 3], Z_TO))


@pytest.mark.parametrize(("cell", "layers", "z_to"), CASES)
def test_single_steps_equal_one_call(cell, layers, z_to):
    torch.manual_seed(0)
    decoder = RecurrentDecoder(4, 3, cell=cell, hidden_dim=5, layers=layers, z_to=z_to).double().eval()
    embedded, z = torch.randn(2, 6, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    whole, end = decoder(embedded, z, decoder.start(z))
    state, parts = decoder.start(z), []
    for t in range(6):
        hidden, state = decoder(embedded[:, t : t + 1], z, state)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize(("cell", "layers", "z_to"), CASES)
def test_hidden_state_depends_on_z_and_past_but_not_on_the_future(cell, layers, z_to):
    torch.manual_seed(0)
    decoder = RecurrentDecoder(4, 3, cell=cell, hidden_dim=5, layers=layers, z_to=z_to).double().eval()
    embedded = torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True)
    z = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    hidden, _ = decoder(embedded, z, decoder.start(z))
    by_input, by_z = torch.autograd.grad(hidden[0, 3].sum(), [embedded, z])
    assert by_input[0, :4].abs().sum(-1).gt(0).all()
    assert by_input[0, 4:].eq(0).all()
    assert by_z.abs().gt(0).all()


def reading_z(decoder: RecurrentDecoder, what: str = "data") -> list[torch.Tensor]:
    """The weights that z is multiplied by, or their gradients, as views."""
    whole = [module.weight for module in (decoder.z_to_state, decoder.z_to_output) if module is not None]
    joined = ([decoder.rnn.weight_ih_l0] if decoder.z_to_input else []) + [up.weight_ih_l0 for up in decoder.upper]
    return [getattr(weight, what) for weight in whole] + [getattr(weight, what)[:, -3:] for weight in joined]


@pytest.mark.parametrize(("cell", "layers", "z_to"), CASES)
def test_a_scale_of_z_is_one_of_the_weights_that_read_it(cell, layers, z_to):
    made = []
    for scale in (0.25, 1.0):
        torch.manual_seed(0)
        options = {"cell": cell, "hidden_dim": 5, "layers": layers, "z_to": z_to, "z_scale": scale}
        made.append(RecurrentDecoder(4, 3, **options).double())
    plain = made[1]
    with torch.no_grad():
        for weight in reading_z(plain):
            weight *= 0.25
    embedded, z = torch.randn(2, 6, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    ours, expected = (decoder(embedded, z, decoder.start(z)) for decoder in made)
    torch.testing.assert_close(ours, expected)
    draws, going = z[:, None].expand(-1, 4, -1), [2] * 3 + [1] * 3
    with torch.no_grad():
        read = [decoder.read_draws(embedded, draws, going) for decoder in made]
    torch.testing.assert_close(*read)

    # A step of SGD moves what the scaled decoder computes as one with a sixteenth of the rate on those weights does.
    for decoder in made:
        decoder(embedded, z, decoder.start(z))[0].square().sum().backward()
    for gradient in reading_z(plain, "grad"):
        gradient /= 16
    with torch.no_grad():
        for decoder in made:
            for parameter in decoder.parameters():
                parameter -= 0.1 * parameter.grad
    ours, expected = (decoder(embedded, z, decoder.start(z)) for decoder in made)
    torch.testing.assert_close(ours, expected)


def test_initial_lstm_state_is_tanh_of_the_memory_in_every_layer():
    decoder = RecurrentDecoder(4, 3, hidden_dim=5, layers=2)
    z = torch.randn(7, 3)
    hidden, memory = decoder.start(z)
    expected = decoder.z_to_state(z).view(7, 2, 5)
    assert hidden.shape == (2, 7, 5)
    torch.testing.assert_close(memory, expected.transpose(0, 1))
    torch.testing.assert_close(hidden, expected.transpose(0, 1).tanh())


def test_without_latents_the_start_is_zero():
    decoder = RecurrentDecoder(4, 0, hidden_dim=5)
    hidden, memory = decoder.start(torch.zeros(2, 0))
    assert hidden.eq(0).all()
    assert memory.eq(0).all()


def test_dropout_spares_z():
    decoder = RecurrentDecoder(4, 3, hidden_dim=5, z_to=["input"], input_dropout=0.99).double().train()
    seen = []
    decoder.rnn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    z = torch.ones(2, 3, dtype=torch.float64)
    decoder(torch.ones(2, 50, 4, dtype=torch.float64), z, decoder.start(z))
    assert seen[0][..., 4:].eq(1).all()
    assert seen[0][..., :4].eq(0).double().mean() > 0.9


@pytest.mark.parametrize(("cell", "layers", "z_to"), CASES)
def test_draws_read_together_equal_each_read_alone(cell, layers, z_to):
    torch.manual_seed(0)
    decoder = RecurrentDecoder(4, 3, cell=cell, hidden_dim=5, layers=layers, z_to=z_to).double().eval()
    embedded, z = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(3, 2, 3, dtype=torch.float64)
    lengths = [6, 4, 1]
    going = [sum(length > step for length in lengths) for step in range(6)]
    with torch.no_grad():
        together = decoder.read_draws(embedded, z, going).split([count * 2 for count in going])
        for sentence, length in enumerate(lengths):
            for draw in range(2):
                one = z[sentence, draw][None]
                alone, _ = decoder(embedded[sentence, None, :length], one, decoder.start(one))
                found = torch.stack([together[step][2 * sentence + draw] for step in range(length)])
                torch.testing.assert_close(found, alone[0], rtol=0, atol=1e-12)


def test_reading_draws_leaves_weights_as_they_are():
    decoder = RecurrentDecoder(4, 3, hidden_dim=5, layers=2).eval()
    before = [parameter.clone() for parameter in decoder.parameters()]
    with torch.no_grad():
        decoder.read_draws(torch.randn(2, 3, 4), torch.randn(2, 4, 3), [2, 2, 1])
    assert all(torch.equal(a, b) for a, b in zip(before, decoder.parameters()))


@pytest.mark.parametrize(("cell", "layers", "z_to"), CASES)
@pytest.mark.parametrize(("kind", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("expected", [2, 9])  # as they are, and laid out
def test_steps_with_weights_made_ready_are_those_of_one_call(cell, layers, z_to, kind, near, expected):
    torch.manual_seed(0)
    options = {"cell": cell, "hidden_dim": 5, "layers": layers, "z_to": z_to, "z_scale": 0.5}
    decoder = RecurrentDecoder(4, 3, **options).to(kind).eval()
    embedded, z = torch.randn(2, 6, 4, dtype=kind), torch.randn(2, 3, dtype=kind)
    with torch.no_grad():
        whole, end = decoder(embedded, z, decoder.start(z))
        before = [parameter.clone() for parameter in decoder.parameters()]
        take, state, parts = decoder.steps(3, expected), decoder.start(z), []
        for t in range(6):
            given = [part.clone() for part in state]
            hidden, after = take(embedded[:, t], z, state)
            assert all(torch.equal(a, b) for a, b in zip(state, given))
            parts.append(hidden)
            state = after
    torch.testing.assert_close(torch.stack(parts, 1), whole, rtol=0, atol=near)
    torch.testing.assert_close(state, end, rtol=0, atol=near)
    assert all(torch.equal(a, b) for a, b in zip(before, decoder.parameters()))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_language_models_steps_read_no_z(cell):
    decoder = RecurrentDecoder(4, 0, cell=cell, hidden_dim=5, layers=2).eval()
    embedded, z = torch.randn(2, 6, 4), torch.zeros(2, 0)
    with torch.no_grad():
        whole, _ = decoder(embedded, z, decoder.start(z))
        take, state = decoder.steps(0, 9), decoder.start(z)
        for t in range(6):
            hidden, state = take(embedded[:, t], z, state)
            torch.testing.assert_close(hidden, whole[:, t], rtol=0, atol=1e-6)
