"""Paths through the latent space against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from textvae.errors import UserError
from textvae.generation.latent import path


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angle(a: Tensor, b: Tensor) -> Tensor:
    return torch.acos(torch.clamp((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)), -1, 1))


@pytest.mark.parametrize("kind", ["linear", "spherical"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_a_path_begins_and_ends_exactly_at_its_ends(kind, dtype, steps):
    a, b = vectors(5, 32).to(dtype), 3 * vectors(5, 32, seed=1).to(dtype)
    points = path(a, b, steps, kind=kind)
    assert points.shape == (steps, 5, 32)
    assert points.dtype == dtype
    assert torch.equal(points[0], a)
    assert torch.equal(points[-1], b)


def test_a_linear_path_has_equal_steps():
    a, b = vectors(6), vectors(6, seed=1)
    points = path(a, b, 5)
    torch.testing.assert_close(points.diff(dim=0), ((b - a) / 4).expand(4, -1))


def test_a_spherical_path_turns_by_equal_angles_while_its_norm_goes_linearly():
    a, b = vectors(8, 16), 2.5 * vectors(8, 16, seed=1)
    points = path(a, b, 9, kind="spherical")
    t = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None]
    torch.testing.assert_close(angle(points, a[None]), t * angle(a, b), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(points.norm(dim=-1), (1 - t) * a.norm(dim=-1) + t * b.norm(dim=-1))


def test_a_spherical_path_is_shoemakes_formula():
    a = torch.nn.functional.normalize(vectors(4, 5), dim=-1)
    b = torch.nn.functional.normalize(vectors(4, 5, seed=1), dim=-1)
    omega = angle(a, b)[:, None]
    for i, point in enumerate(path(a, b, 6, kind="spherical")):
        t = i / 5
        expected = (torch.sin((1 - t) * omega) * a + torch.sin(t * omega) * b) / torch.sin(omega)
        torch.testing.assert_close(point, expected)


def test_a_quarter_turn_in_the_plane():
    points = path(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), 3, kind="spherical")
    torch.testing.assert_close(points[1], 2 * torch.tensor([math.sqrt(0.5), math.sqrt(0.5)]))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1 + 1e-12, 4.0])
def test_between_parallel_vectors_the_spherical_path_is_linear(factor):
    a = vectors(3, 7)
    torch.testing.assert_close(path(a, factor * a, 5, kind="spherical"), path(a, factor * a, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_between_opposite_vectors_the_spherical_path_goes_half_way_round(dtype):
    a = torch.cat([vectors(3, 7), torch.eye(7, dtype=torch.float64)[:2]]).to(dtype)
    points = path(a, -2 * a, 5, kind="spherical")
    for i, point in enumerate(points):
        torch.testing.assert_close(angle(point, a), torch.full_like(a[:, 0], i * math.pi / 4), atol=2e-3, rtol=0)
        torch.testing.assert_close(point.norm(dim=-1), (1 + i / 4) * a.norm(dim=-1))


def test_small_angles_keep_their_digits():
    a = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    b = torch.tensor([1.0, 1e-7, 0.0], dtype=torch.float64)
    points = path(a, b, 3, kind="spherical")
    torch.testing.assert_close(points[1, 1], torch.tensor(0.5e-7, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_zero_vector_takes_the_direction_of_the_other_end():
    zero, a = torch.zeros(4, dtype=torch.float64), vectors(4)
    torch.testing.assert_close(path(zero, a, 4, kind="spherical"), path(zero, a, 4))
    torch.testing.assert_close(path(a, zero, 4, kind="spherical"), path(a, zero, 4))
    assert torch.equal(path(zero, zero, 4, kind="spherical"), torch.zeros(4, 4, dtype=torch.float64))


def test_one_dimension_has_no_way_round():
    a, b = torch.tensor([2.0]), torch.tensor([-1.0])
    torch.testing.assert_close(path(a, b, 4, kind="spherical"), torch.tensor([[2.0], [1.0], [0.0], [-1.0]]))


@pytest.mark.parametrize("kind", ["linear", "spherical"])
def test_a_batch_of_paths_is_the_paths_one_by_one(kind):
    a, b = vectors(6, 9), vectors(6, 9, seed=1)
    a[1], b[2], b[3] = 0, 0, -a[3]
    points = path(a, b, 5, kind=kind)
    for i in range(6):
        assert torch.equal(points[:, i], path(a[i], b[i], 5, kind=kind))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 1}, "steps: got 1"),
        ({"kind": "sferical"}, "kind: got 'sferical'; known: linear, spherical. Did you mean 'spherical'"),
        ({"b": torch.zeros(4)}, r"shapes \(3,\) and \(4,\)"),
        ({"a": torch.zeros(1, 1, 3), "b": torch.zeros(1, 1, 3)}, "both must be"),
    ],
)
def test_a_path_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        path(**{"a": torch.zeros(3), "b": torch.ones(3), "steps": 3, **arguments})
