"""Dropout of recurrent layers: masks shared by the steps, weights between the steps, neither in evaluation."""

import pytest
import torch
import torch.nn.functional as F

from textvae.nets import dropout
from textvae.nets.decoders import RecurrentDecoder
from textvae.nets.dropout import SharedDropout, read_with_dropped_weights
from textvae.nets.encoders import CELLS

RATE = 0.4


def test_a_shared_mask_is_one_of_a_sentence():
    torch.manual_seed(0)
    layer, states = SharedDropout(RATE), torch.ones(300, 5, 40)
    masked = layer(states)
    assert torch.equal(masked, masked[:, :1].expand(-1, 5, -1))
    assert masked.unique().tolist() == pytest.approx([0, 1 / (1 - RATE)])
    # 12,000 coins: a standard error of 0.0045.
    assert masked.eq(0).float().mean().item() == pytest.approx(RATE, abs=0.02)
    assert not torch.equal(masked[0], masked[1])
    assert torch.equal(layer.eval()(states), states)
    assert torch.equal(SharedDropout(0.0)(states), states)


@pytest.mark.parametrize("shared", [True, False])
def test_the_decoders_dropouts_take_the_masks_that_are_asked_for(shared):
    torch.manual_seed(0)
    options = {"hidden_dim": 5, "z_to": ["input"], "shared_dropout": shared}
    decoder = RecurrentDecoder(40, 3, input_dropout=RATE, **options).train()
    seen = []
    decoder.rnn.register_forward_pre_hook(lambda module, args: seen.append(args[0][..., :40]))
    z = torch.ones(6, 3)
    decoder(torch.ones(6, 9, 40), z, decoder.start(z))
    assert torch.equal(seen[0], seen[0][:, :1].expand(-1, 9, -1)) is shared

    decoder = RecurrentDecoder(40, 3, output_dropout=RATE, **options).train()
    hidden, _ = decoder(torch.ones(6, 9, 40), z, decoder.start(z))
    assert torch.equal(hidden.eq(0), hidden[:, :1].eq(0).expand(-1, 9, -1)) is shared


def by_hand(rnn, inputs, state, weights):
    """The recurrence of torch's documentation, a step at a time, with other weights between the steps."""
    below, ends = inputs, []
    for layer in range(rnn.num_layers):
        w, b, c = (getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "bias_ih", "bias_hh"))
        now, outputs = [part[layer] for part in state], []
        for t in range(inputs.shape[1]):
            i, h = F.linear(below[:, t], w, b), F.linear(now[0], weights[layer], c)
            if len(now) == 2:
                keep, forget, new, out = (i + h).chunk(4, 1)
                memory = forget.sigmoid() * now[1] + keep.sigmoid() * new.tanh()
                now = [out.sigmoid() * memory.tanh(), memory]
            else:
                reset, update, _ = (i + h).sigmoid().chunk(3, 1)
                new = (i.chunk(3, 1)[2] + reset * h.chunk(3, 1)[2]).tanh()
                now = [(1 - update) * new + update * now[0]]
            outputs.append(now[0])
        below = torch.stack(outputs, 1)
        ends.append(now)
    return below, tuple(torch.stack(parts) for parts in zip(*ends))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_dropped_weights_are_the_recurrences_of_those_weights(cell, layers, monkeypatch):
    torch.manual_seed(0)
    rnn = CELLS[cell](4, 6, layers, batch_first=True).double()
    inputs = torch.randn(3, 5, 4, dtype=torch.float64)
    state = tuple(torch.randn(layers, 3, 6, dtype=torch.float64) for _ in range(2 if cell == "lstm" else 1))
    dropped = []

    plain = F.dropout

    def seen(weight, rate):
        dropped.append(plain(weight, rate))
        return dropped[-1]

    monkeypatch.setattr(dropout.F, "dropout", seen)
    found = read_with_dropped_weights(rnn, inputs, state, RATE)
    monkeypatch.undo()
    assert len(dropped) == layers  # what leads from step to step, and no other weight
    kept = [weight.ne(0) for weight in dropped]
    assert all(0.3 < mask.double().mean() < 0.9 for mask in kept)
    for i, (mask, weight) in enumerate(zip(kept, dropped)):
        torch.testing.assert_close(weight[mask], getattr(rnn, f"weight_hh_l{i}")[mask] / (1 - RATE))
    expected = by_hand(rnn, inputs, state, dropped)
    torch.testing.assert_close(found, expected)

    # Gradients: none reaches a weight that was dropped.
    names = [name for name, _ in rnn.named_parameters()]
    parameters = list(rnn.parameters())
    ours, theirs = (
        torch.autograd.grad(hidden.square().sum(), parameters, retain_graph=True) for hidden, _ in (found, expected)
    )
    torch.testing.assert_close(ours, theirs)
    for i, mask in enumerate(kept):
        assert ours[names.index(f"weight_hh_l{i}")][~mask].eq(0).all()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("z_to", [["state", "input"], ["layers", "output"]])
def test_recurrent_dropout_is_of_training_alone(cell, z_to):
    torch.manual_seed(0)
    decoder = RecurrentDecoder(4, 3, cell=cell, hidden_dim=16, layers=2, z_to=z_to, recurrent_dropout=RATE)
    embedded, z = torch.randn(3, 7, 4), torch.randn(3, 3)
    first, second = (decoder(embedded, z, decoder.start(z))[0] for _ in range(2))
    assert not torch.allclose(first, second)
    decoder.eval()
    whole, end = decoder(embedded, z, decoder.start(z))
    plain = RecurrentDecoder(4, 3, cell=cell, hidden_dim=16, layers=2, z_to=z_to).eval()
    plain.load_state_dict(decoder.state_dict())
    assert torch.equal(whole, plain(embedded, z, plain.start(z))[0])
    assert all(torch.equal(a, b) for a, b in zip(end, plain(embedded, z, plain.start(z))[1]))
