"""The nearest-embedding layer against distances by other means, brute force and finite differences."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Independent, Normal

from textvae.nets import nearest as nearest_module
from textvae.nets.nearest import NearestEmbedding

DISTANCES = ("squared_error", "cosine")
ROWS, HIDDEN, VOCABULARY, WIDTH = 40, 6, 50, 5


def layer_of(distance: str, sharpness: float = 3.0) -> tuple[NearestEmbedding, nn.Embedding]:
    torch.manual_seed(0)
    embedding = nn.Embedding(VOCABULARY, WIDTH).double()
    layer = NearestEmbedding(HIDDEN, VOCABULARY, distance=distance, sharpness=sharpness)
    layer.attach(embedding)
    return layer.double(), embedding


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, HIDDEN, generator=draws, dtype=torch.float64)
    return hidden, torch.randint(0, VOCABULARY, (ROWS,), generator=draws)


def distances(layer: NearestEmbedding, embedding: nn.Embedding, hidden: torch.Tensor) -> torch.Tensor:
    """(N, V), without a line of the layer's."""
    predicted = hidden @ layer.projection.weight.T + layer.projection.bias
    table = embedding.weight.detach()
    if layer.distance == "cosine":
        return 1 - F.cosine_similarity(predicted[:, None], table[None], dim=-1)
    return torch.cdist(predicted, table / table.norm(dim=1, keepdim=True)).square()


@pytest.mark.parametrize("distance", DISTANCES)
def test_logits_and_training_loss_are_the_distances_times_the_sharpness(distance):
    layer, embedding = layer_of(distance)
    hidden, targets = rows()
    expected = -3.0 * distances(layer, embedding, hidden)
    torch.testing.assert_close(layer.logits(hidden), expected.float())
    torch.testing.assert_close(layer(hidden, targets), expected.gather(1, targets[:, None])[:, 0])
    shaped = layer.logits(hidden.view(4, 10, HIDDEN))
    torch.testing.assert_close(shaped, expected.view(4, 10, VOCABULARY).float())


@pytest.mark.parametrize("distance", DISTANCES)
def test_an_evaluation_scores_a_distribution_over_tokens(distance):
    layer, embedding = layer_of(distance)
    layer.eval()
    hidden, targets = rows()
    expected = torch.log_softmax(-3.0 * distances(layer, embedding, hidden), -1)
    torch.testing.assert_close(layer(hidden, targets), expected.gather(1, targets[:, None])[:, 0])
    everything = layer(hidden.repeat_interleave(VOCABULARY, 0), torch.arange(VOCABULARY).repeat(ROWS))
    torch.testing.assert_close(everything.view(ROWS, VOCABULARY).exp().sum(1), torch.ones(ROWS, dtype=torch.float64))
    single = torch.log_softmax(layer.logits(hidden), -1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(layer(hidden, targets).float(), single, atol=1e-5, rtol=1e-5)


def test_the_squared_errors_training_loss_is_a_gaussian_log_density_up_to_a_constant():
    sharpness = 3.0
    layer, embedding = layer_of("squared_error", sharpness)
    hidden, targets = rows()
    scale = math.sqrt(1 / (2 * sharpness))
    density = Independent(Normal(layer.projection(hidden), torch.full((WIDTH,), scale, dtype=torch.float64)), 1)
    places = F.normalize(embedding.weight[targets], dim=-1)
    difference = density.log_prob(places) - layer(hidden, targets)
    constant = -WIDTH * math.log(scale * math.sqrt(2 * math.pi))
    torch.testing.assert_close(difference, torch.full((ROWS,), constant, dtype=torch.float64))


@pytest.mark.parametrize("distance", DISTANCES)
def test_greedy_decoding_takes_the_nearest_embedding(distance):
    layer, embedding = layer_of(distance)
    hidden, _ = rows()
    chosen = layer.logits(hidden).argmax(-1)
    predicted, table = layer.projection(hidden).detach(), embedding.weight.detach()
    for row in range(ROWS):

        def far(token: int, row: int = row) -> float:
            place = table[token] / table[token].norm()
            if distance == "cosine":
                return -float(predicted[row] @ place)
            return float((predicted[row] - place).norm())

        assert chosen[row] == min(range(VOCABULARY), key=far)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gradients_equal_finite_differences(distance, training):
    layer, _ = layer_of(distance)
    layer.train(training)
    hidden, targets = rows()
    hidden = hidden[:4].requires_grad_()

    def loss(hidden, weight, bias):
        values = {"projection.weight": weight, "projection.bias": bias}
        return torch.func.functional_call(layer, values, (hidden, targets[:4]))

    assert torch.autograd.gradcheck(loss, (hidden, layer.projection.weight, layer.projection.bias))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_embeddings_get_no_gradient(distance, training):
    layer, embedding = layer_of(distance)
    hidden, targets = rows()
    layer.train(training)(hidden, targets).sum().backward()
    layer.logits(hidden).sum().backward()
    assert embedding.weight.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_pieces_change_nothing(distance, piece, monkeypatch):
    layer, _ = layer_of(distance)
    layer.eval()
    hidden, targets = rows()
    whole = layer(hidden, targets)
    monkeypatch.setattr(nearest_module, "PIECE_ELEMENTS", VOCABULARY * piece)
    torch.testing.assert_close(layer(hidden, targets), whole)
    assert layer(hidden[:0], targets[:0]).shape == (0,)


def test_training_never_asks_for_the_whole_table(monkeypatch):
    layer, _ = layer_of("cosine")
    monkeypatch.setattr(layer, "_unit_table", lambda *_: pytest.fail("the whole table"))
    assert layer(*rows()).shape == (ROWS,)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_embeddings_and_predictions_of_norm_zero_stay_finite(distance, training):
    layer, embedding = layer_of(distance)
    with torch.no_grad():
        embedding.weight[0] = 0.0
        layer.projection.bias.zero_()
    hidden, targets = rows()
    hidden[0], targets[:5] = 0.0, 0
    hidden.requires_grad_()
    result = layer.train(training)(hidden, targets)
    result.sum().backward()
    assert result.isfinite().all()
    assert layer.logits(hidden).isfinite().all()
    assert hidden.grad.isfinite().all()
    assert layer.projection.weight.grad.isfinite().all()


def test_the_table_stands_in_the_state_once_and_a_copy_keeps_to_its_own():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.output, self.embedding = layer_of("cosine")

    model = Model()
    assert sorted(model.state_dict()) == ["embedding.weight", "output.projection.bias", "output.projection.weight"]
    assert sum(1 for _ in model.parameters()) == 3
    other = copy.deepcopy(model)
    hidden, targets = rows()
    before = model.output(hidden, targets)
    with torch.no_grad():
        other.embedding.weight.normal_()
    torch.testing.assert_close(model.output(hidden, targets), before)
    assert not torch.allclose(other.output(hidden, targets), before)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_half_precision_stays_near_float32_and_keeps_float32_gradients(distance, training):
    layer, embedding = layer_of(distance)
    layer, _ = layer.float().train(training), embedding.float()
    hidden, targets = rows()
    hidden = hidden.float()
    exact, exact_logits = layer(hidden, targets), layer.logits(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        rough, logits = layer(hidden, targets), layer.logits(hidden)
        halved = layer(hidden.bfloat16(), targets)
    rough.sum().backward()
    assert exact.dtype == rough.dtype == logits.dtype == halved.dtype == torch.float32
    assert layer.projection.weight.grad.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0.02)
    torch.testing.assert_close(halved, exact, atol=0.1, rtol=0.02)
    torch.testing.assert_close(logits, exact_logits, atol=0.1, rtol=0.02)


def test_a_table_of_another_vocabulary_is_refused():
    layer = NearestEmbedding(HIDDEN, VOCABULARY)
    with pytest.raises(ValueError, match="predicts 50 tokens; the table has 51"):
        layer.attach(nn.Embedding(VOCABULARY + 1, WIDTH))
