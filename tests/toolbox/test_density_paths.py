"""Paths along the data: where the corpus is a ring they go round; densities against torch, autograd and scipy."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import shortest_path
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from textvae.errors import UserError
from textvae.toolbox import density_paths
from textvae.toolbox.density_paths import Aggregate, interpolate, path_along


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ring(dimensions, count=600, radius=2.0):
    angle = torch.linspace(0, 2 * math.pi, count + 1, dtype=torch.float64)[:-1]
    means = 0.05 * normal(count, dimensions)
    means[:, 0] += radius * angle.cos()
    means[:, 1] += radius * angle.sin()
    return means


def ends(dimensions, radius=2.0):
    a = torch.zeros(dimensions)
    a[0] = radius
    return a, -a


@pytest.mark.parametrize("scale", [0.15, None])
@pytest.mark.parametrize("dimensions", [2, 12])
def test_round_a_ring_the_path_goes_round_and_not_through_the_hole(dimensions, scale):
    means = ring(dimensions)
    aggregate = Aggregate(means, None if scale is None else torch.full_like(means, scale))
    a, b = ends(dimensions)
    path = path_along(a, b, 9, aggregate)
    assert path.shape == (9, dimensions)
    assert path.dtype == a.dtype
    assert torch.equal(path[0], a)
    assert torch.equal(path[-1], b)
    radii = path[:, :2].norm(dim=-1)
    assert float(radii.min()) > 1.7
    assert float(radii.max()) < 2.2
    # It goes half-way round by equal steps, the chords of eight equal arcs.
    steps = path.diff(dim=0).norm(dim=-1)
    torch.testing.assert_close(steps, torch.full_like(steps, 2 * 1.9 * math.sin(math.pi / 16)), rtol=0.08, atol=0)
    straight = torch.lerp(a, b, torch.linspace(0, 1, 9)[:, None])
    assert float(straight[4].norm()) == 0
    assert float(aggregate.log_prob(path).min()) > float(aggregate.log_prob(straight).min()) + 10


def test_where_the_corpus_is_one_cloud_the_path_is_straight():
    means = normal(500, 8)
    aggregate = Aggregate(means, torch.full_like(means, 0.5))
    a, b = normal(2, 8, seed=1)
    straight = torch.lerp(a, b, torch.linspace(0, 1, 7, dtype=torch.float64)[:, None])
    path = path_along(a, b, 7, aggregate, percentile=5)
    assert float((path - straight).norm(dim=-1).max()) < 0.02 * float((a - b).norm())
    torch.testing.assert_close(path_along(a, b, 7, aggregate, pull=0.0), straight, rtol=0, atol=0.02)


def test_equal_ends_give_one_point_over_and_over():
    a = normal(4)
    path = path_along(a, a, 5, Aggregate(normal(50, 4, seed=2)))
    torch.testing.assert_close(path[[0, -1]], a.expand(2, -1))
    assert path.isfinite().all()


def test_the_density_is_the_mixtures_and_its_gradient_is_autograds():
    means, scales = 3 + normal(40, 5), normal(40, 5, seed=1).abs() + 0.5
    aggregate = Aggregate(means, scales, bandwidth=1e-3)
    mixture = MixtureSameFamily(Categorical(torch.ones(40).double()), Independent(Normal(means, scales), 1))
    z = (3 + 2 * normal(11, 5, seed=2)).requires_grad_()
    (gradient,) = torch.autograd.grad(mixture.log_prob(z).sum(), z)
    found = aggregate.log_prob_and_gradient(z.detach())
    torch.testing.assert_close(found[0], mixture.log_prob(z).detach())
    torch.testing.assert_close(found[1], gradient)


def test_the_level_leaves_each_sentence_out_of_its_own_density():
    means, scales = normal(30, 3), torch.full((30, 3), 0.7, dtype=torch.float64)
    found = []
    for i in range(30):
        others = [j for j in range(30) if j != i]
        found.append(float(Aggregate(means[others], scales[others], bandwidth=0.1).log_prob(means[i : i + 1])))
    expected = float(np.percentile(found, 25))
    assert Aggregate(means, scales, bandwidth=0.1).level(25) == pytest.approx(expected)


def test_the_narrowest_width_is_the_fifth_neighbours_distance_over_root_d():
    means = torch.arange(100.0)[:, None].expand(-1, 4)  # neighbours at distances 2, 2, 4, 4, 6
    assert Aggregate(means).bandwidth == pytest.approx(6 / 2)
    assert torch.equal(Aggregate(means).scales, torch.full((100, 4), 3.0).double())
    assert torch.equal(Aggregate(means, torch.full((100, 4), 9.0)).scales, torch.full((100, 4), 9.0).double())


@pytest.mark.parametrize("power", [1.5, 2.0, 4.0])
def test_the_route_is_scipys_shortest_path(power):
    points = normal(60, 3, seed=4).numpy()
    costs = np.linalg.norm(points[:, None] - points[None], axis=-1) ** power
    distance = shortest_path(costs, indices=0)[1]
    way = density_paths._cheapest(points, power)
    assert (way[0], way[-1]) == (0, 1)
    assert sum(costs[i, j] for i, j in itertools.pairwise(way)) == pytest.approx(distance)


def test_repeated_sentences_change_no_route():
    means = ring(3, 200)
    a, b = ends(3)
    one = path_along(a, b, 5, Aggregate(means, bandwidth=0.1))
    two = path_along(a, b, 5, Aggregate(means.repeat(2, 1), bandwidth=0.1))
    # Left out once, a sentence still stands there once more: its level is a little higher.
    torch.testing.assert_close(one, two, rtol=0, atol=0.1)


def test_between_sentences_the_path_keeps_to_denser_latents_than_the_straight_one(vae, corpus, unseen):
    aggregate = Aggregate(*vae.encode_distribution(corpus[:1000]))
    z = vae.encode(unseen[:10])
    level = aggregate.level(50)
    missing = {"data": 0.0, "straight": 0.0}
    for a, b in zip(z[::2], z[1::2]):
        between = {
            "data": path_along(a, b, 9, aggregate),
            "straight": torch.lerp(a, b, torch.linspace(0, 1, 9)[:, None]),
        }
        for name, points in between.items():
            missing[name] += float((level - aggregate.log_prob(points[1:-1])).clamp_min(0).sum())
    assert missing["data"] < 0.7 * missing["straight"] + 0.1


def test_interpolation_along_the_data_starts_and_ends_at_the_reconstructions(vae, corpus, unseen):
    a, b = unseen[:2]
    walk = interpolate(vae, a, b, 5, corpus=corpus[:300])
    assert len(walk) == 5
    assert [walk[0], walk[-1]] == vae.reconstruct([a, b])
    assert interpolate(vae, a, b, 5, path="spherical") == vae.interpolate(a, b, 5, path="spherical")


def test_a_run_in_the_hand_walks_along_a_corpus_as_the_toolbox_does_and_along_the_training_part_without_one(
    vae, corpus, unseen
):
    a, b = unseen[:2]
    asked = {"path": "data", "corpus": corpus[:300]}
    assert vae.interpolate(a, b, 5, **asked) == interpolate(vae, a, b, 5, corpus=corpus[:300])
    training = vae.corpus_texts("train", density_paths.CORPUS)
    assert vae.interpolate(a, b, 5, path="data") == vae.interpolate(a, b, 5, path="data", corpus=training)
    with pytest.raises(UserError, match="nothing on the path 'linear'"):
        vae.interpolate(a, b, corpus=corpus[:300])


def test_what_cannot_be_is_refused(vae):
    aggregate = Aggregate(normal(20, 3))
    a, b = normal(2, 3)
    for call, message in (
        (lambda: path_along(a, b, 1, aggregate), "steps: got 1"),
        (lambda: path_along(a[:2], b, 3, aggregate), r"both must be \(3,\)"),
        (lambda: path_along(a, b, 3, aggregate, power=0.5), "power, pull"),
        (lambda: path_along(a, b, 3, aggregate, percentile=101), "percentile: got 101"),
        (lambda: Aggregate(normal(1, 3)), "N at least 2"),
        (lambda: Aggregate(normal(5, 3) / 0), "not finite"),
        (lambda: Aggregate(normal(5, 3), bandwidth=0.0), "bandwidth"),
        (lambda: interpolate(vae, "a", "b", path="dat"), "Did you mean 'data'"),
        (lambda: interpolate(vae, "a", "b", corpus=["one"]), "N at least 2"),
    ):
        with pytest.raises(UserError, match=message):
            call()
