"""Mixing, stepping around a sentence and moving one dimension, against their formulas."""

import math

import pytest
import torch

from textvae.errors import UserError
from textvae.toolbox import moves


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_mixture_is_the_weighted_mean_and_one_sentence_is_itself():
    z = normal(3, 6)
    torch.testing.assert_close(moves.mix_latents(z), z.mean(0))
    torch.testing.assert_close(moves.mix_latents(z, [1, 2, 5]), (z[0] + 2 * z[1] + 5 * z[2]) / 8)
    torch.testing.assert_close(moves.mix_latents(z, [0, 1, 0]), z[1])
    torch.testing.assert_close(moves.mix_latents(z, [-1, 2, 0]), 2 * z[1] - z[0])


def test_two_sentences_in_equal_parts_are_the_middle_of_the_path_between_them():
    from textvae.generation.latent import path

    z = normal(2, 6)
    torch.testing.assert_close(moves.mix_latents(z), path(z[0], z[1], 3)[1])
    unit = torch.nn.functional.normalize(z, dim=-1)
    torch.testing.assert_close(
        moves.mix_latents(unit, path="spherical"), path(unit[0], unit[1], 3, kind="spherical")[1]
    )


def test_a_spherical_mixture_has_the_mean_norm():
    z = normal(50, 64)
    assert float(moves.mix_latents(z).norm()) < 2
    mixed = moves.mix_latents(z, path="spherical")
    assert float(mixed.norm()) == pytest.approx(float(z.norm(dim=-1).mean()), rel=1e-5)
    assert float(torch.cosine_similarity(mixed, z.mean(0), dim=0)) == pytest.approx(1)


def test_around_a_sentence_every_draw_is_at_the_radius_and_directions_are_uniform():
    mean, scale = normal(5), normal(5, seed=1).abs() + 0.1
    z = moves.around(mean, scale, 4000, radius=1.5, generator=torch.Generator().manual_seed(2))
    standardized = (z - mean) / scale
    torch.testing.assert_close(standardized.square().mean(-1).sqrt(), torch.full((4000,), 1.5))
    assert float(standardized.mean(0).abs().max()) < 4 * 1.5 / math.sqrt(4000)
    torch.testing.assert_close(standardized.var(0), torch.full((5,), 2.25), rtol=0.15, atol=0)


def test_a_small_step_reads_as_the_reconstruction_and_a_wide_one_does_not(vae, unseen):
    (rebuilt,) = vae.reconstruct(unseen[:1])
    assert moves.perturb(vae, unseen[0], 4, radius=0.0) == [rebuilt] * 4
    wide = moves.perturb(vae, unseen[0], 12, radius=4.0, seed=0)
    assert len(set(wide)) > 3
    assert moves.perturb(vae, unseen[0], 12, radius=4.0, seed=0) == wide
    assert moves.perturb(vae, unseen[0], 12, radius=4.0, seed=1) != wide


def test_a_traversal_moves_one_dimension_and_passes_through_the_sentence(vae, unseen):
    z = vae.encode(unseen[:1])[0]
    moved = moves.along_dimension(z, 2, torch.tensor([-1.0, 0.5]))
    assert moved[:, 2].tolist() == [-1.0, 0.5]
    keep = [0, 1, *range(3, 8)]
    assert torch.equal(moved[:, keep], z[keep].expand(2, -1))
    value = float(z[2])
    rows = moves.traverse(vae, unseen[0], 2, 5, low=value - 2, high=value + 2)
    assert [row[0] for row in rows] == pytest.approx([value + step for step in (-2, -1, 0, 1, 2)], abs=1e-6)
    assert rows[2][1] == vae.reconstruct(unseen[:1])[0]
    assert moves.traverse(vae, None, 0, 3)[1] == (0.0, vae.decode(torch.zeros(1, 8), method="greedy")[0])


def test_mixing_texts_decodes_the_mixed_latent(vae, unseen):
    z = vae.encode(unseen[:3])
    expected = vae.decode((0.6 * z[0] + 0.2 * z[1] + 0.2 * z[2])[None], method="greedy")[0]
    assert moves.mix(vae, unseen[:3], [3, 1, 1]) == expected
    assert moves.mix(vae, unseen[:3], [1, 0, 0]) == vae.reconstruct(unseen[:1])[0]


def test_what_cannot_be_is_refused(vae):
    z = normal(2, 3)
    for call, message in (
        (lambda: moves.mix_latents(z, [1.0]), "weights: got 1 for 2"),
        (lambda: moves.mix_latents(z, [1.0, -1.0]), "sum above 0"),
        (lambda: moves.mix_latents(z, [1.0, math.inf]), "finite"),
        (lambda: moves.mix_latents(z[:0]), "N at least 1"),
        (lambda: moves.mix_latents(z, path="sferical"), "Did you mean 'spherical'"),
        (lambda: moves.around(z[0], torch.zeros(3), 2), "is a point"),
        (lambda: moves.around(z[0], z[0].abs(), 2, radius=-1), "radius"),
        (lambda: moves.around(z[0], z[0].abs(), -2), "n: got -2"),
        (lambda: moves.along_dimension(z[0], 3, torch.zeros(2)), "there are 3, counted from 0"),
        (lambda: moves.traverse(vae, "a", 99), "dimension: got 99"),
        (lambda: moves.traverse(vae, "a", 0, 1), "steps: got 1"),
        (lambda: moves.traverse(vae, "a", 0, low=math.nan), "low: got nan; it must be finite"),
        (lambda: moves.traverse(vae, "a", 0, high=1e30), r"high: got 1e\+30"),
        (lambda: moves.traverse(vae, "a", 1.5), "dimension: got 1.5"),
        (lambda: moves.traverse(vae, " ", 0), "text: is empty"),
        (lambda: moves.perturb(vae, ""), "text: is empty"),
        (lambda: moves.perturb(vae, "a", radius=1e20), r"radius: got 1e\+20; it must be finite, from 0 to 1000"),
        (lambda: moves.mix(vae, ["a", ""]), "texts: is empty"),
        (lambda: moves.mix(vae, "ab"), "texts: got the single text"),
        (lambda: moves.mix_latents(z, [1.0, -0.9999]), "beyond 1,000 times that sum"),
    ):
        with pytest.raises(UserError, match=message):
            call()
