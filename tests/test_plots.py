"""A run's curves: what is drawn, and once."""

import pytest
from matplotlib.figure import Figure

from textvae.plots import draw


def row(step: int, **figures: float) -> dict:
    return {"part": "validation", "step": step, **figures}


def drawn(rows: list[dict]) -> list[dict[str, list[float]]]:
    """Of each panel, the points of each labelled line."""
    figure = Figure()
    draw(figure, rows)
    return [{str(line.get_label()): list(line.get_ydata()) for line in axis.lines} for axis in figure.axes]


def test_a_language_model_has_one_line_of_its_nll_and_no_more():
    rows = [row(step, nll_elbo=9.0 - step, reconstruction=9.0 - step, kl=0.0, active_units=0) for step in (1, 2)]
    (panel,) = drawn(rows)
    assert {name: points for name, points in panel.items() if points} == {"validation NLL": [8.0, 7.0]}


def test_a_vae_has_its_bound_beside_its_reconstruction_and_whole_units():
    rows = [
        row(1, nll_elbo=9.0, reconstruction=8.0, kl=1.0, mutual_information=0.5, active_units=0, kl_weight=0.5),
        row(2, nll_elbo=7.0, reconstruction=5.0, kl=2.0, mutual_information=1.5, active_units=0, kl_weight=1.0),
    ]
    loss, middle, right, *_ = drawn(rows)
    assert loss["validation −ELBO"] == [9.0, 7.0]
    assert loss["validation reconstruction"] == [8.0, 5.0]
    assert (middle["KL"], middle["mutual information"]) == ([1.0, 2.0], [0.5, 1.5])
    assert right["active units"] == [0, 0]
    figure = Figure()
    draw(figure, rows)
    assert figure.axes[2].get_ylim() == pytest.approx((0, 1))


@pytest.mark.parametrize("steps", [(50,), (50, 100)], ids=str)
def test_every_line_is_to_be_seen_of_one_point_too(steps):
    figure = Figure()
    rows = [{"part": "train", "step": step, "loss": 9.0, "kl_weight": 0.1} for step in steps]
    draw(figure, [*rows, row(steps[-1], nll_elbo=9.0, reconstruction=8.0, kl=1.0)])
    lines = [line for axis in figure.axes for line in axis.lines]
    assert {"training loss", "kl weight"} <= {line.get_label() for line in lines}
    for line in lines:
        assert len(line.get_ydata()) > 1 or line.get_marker() == "o", line.get_label()
