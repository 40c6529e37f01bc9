"""The two models that are compared, and one training step of each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.benchmarks.sizes import BOS, EOS, PAD, UNK, Sizes
from tests.benchmarks.textbook import Textbook
from tests.benchmarks.textbook_training import CLIP, RATE
from textvae import build
from textvae.model import SequenceVAE
from textvae.optimizers import OPTIMIZERS
from textvae.recipe import Recipe
from textvae.schedules import RATES, Horizon
from textvae.text.batching import Step, make_step
from textvae.training.outcomes import Outcomes
from textvae.training.position import Position
from textvae.training.replay import replay_of
from textvae.training.setup import Experiment
from textvae.training.steps import take_step
from textvae.training.telemetry import Telemetry

SHARPNESS, END_SLOPE, END_BIAS = 40.0, 60.0, -24.0


class Ids:
    """Stands in for a tokenizer where only the number of words is asked for."""

    pad_id, bos_id, eos_id, unk_id = PAD, BOS, EOS, UNK

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return self.vocabulary


def recipe_of(
    sizes: Sizes,
    optimizer: str,
    data: dict[str, Any] | None = None,
    batch_size: int = 32,
    output: dict[str, Any] | None = None,
) -> Recipe:
    """Returns ptb-vae's model at these sizes, without dropout, so that losses can be compared."""
    return Recipe.model_validate(
        {
            "data": data or {"grammar": {}},
            "model": {
                "latent_dim": sizes.latent,
                "embedding_dim": sizes.embedding,
                "encoder": {"hidden_dim": sizes.hidden},
                "decoder": {"hidden_dim": sizes.hidden, "z_to": ["state", "input"]},
                "output": output or {"kind": "softmax"},
            },
            "objective": {"kl": {"kind": "kl", "weight": 1.0}},
            "training": {
                "batch_size": batch_size,
                "max_steps": 100_000,
                "optimizer": {"kind": optimizer, "lr": RATE[optimizer]},
                "gradient_clip": CLIP,
            },
        }
    )


def our_model(sizes: Sizes, output: dict[str, Any] | None = None) -> SequenceVAE:
    torch.manual_seed(0)
    recipe = recipe_of(sizes, "sgd", output=output)
    return build.build_model(recipe, Ids(sizes.vocabulary))  # type: ignore[arg-type]


@torch.no_grad()
def copy_weights(source: Textbook, target: SequenceVAE) -> None:
    """Gives our model the textbook's parameters; every one of ours has its counterpart, by name."""
    target.load_state_dict({our_name(name): value for name, value in source.state_dict().items()})


def our_name(name: str) -> str:
    """What the textbook's parameter is called here."""
    layers = {"encoder": "encoder.forward_layers.0", "lstm": "decoder.rnn", "to_state": "decoder.z_to_state"}
    layers |= {"embedding": "decoder_embedding", "to_posterior": "posterior.head"}
    layer, parameter = name.split(".")
    return f"{layers.get(layer, layer)}.{parameter}"


def our_trainer(
    sizes: Sizes,
    optimizer: str,
    device: torch.device,
    output: dict[str, Any] | None = None,
    precision: str = "fp32",
) -> Callable[[list[list[int]]], None]:
    """Returns a function from sentences to one step of the loop's own: loss, gradients, clipping, optimiser."""
    recipe = recipe_of(sizes, optimizer, output=output)
    AcceleratorState._reset_state()  # the first one's precision would be every later one's
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")
    model, horizon = our_model(sizes, output), Horizon(1_000, 100_000)
    objective = build.build_objective(recipe, horizon)
    unprepared = OPTIMIZERS.build(recipe.training.optimizer.as_dict(), list(model.parameters()), path="optimizer")
    base_rates = [group["lr"] for group in unprepared.param_groups]
    wrapped, prepared = accelerator.prepare(model, unprepared)
    batches: Any = None  # the steps are given
    experiment = Experiment(
        model=wrapped,
        unwrapped=model,
        objective=objective,
        optimizer=prepared,
        batches=batches,
        validation=batches,
        horizon=horizon,
        rate=build.build_timed(RATES, recipe.training.lr_schedule, horizon, "lr_schedule"),
        decay=None,
        pad_id=PAD,
        base_rates=base_rates,
        critics=[],
        encoder_parameters=[],
        term_parameters=[],
        average=None,
        outcomes=Outcomes(prepared, accelerator, ahead=device.type == "cuda"),
        replay=replay_of(recipe, wrapped, model, objective, 1),
    )
    folder = tempfile.TemporaryDirectory(prefix="textvae-benchmarks-")
    position = Position()
    telemetry = Telemetry(Path(folder.name), recipe, accelerator, experiment, 0, quiet=True)
    wrapped.train()

    def step(sentences: list[list[int]], _kept: object = folder) -> None:
        work: Step = make_step(sentences, PAD, 0, 1, 1)
        take_step(experiment, recipe, accelerator, work, position, telemetry, lambda: False)
        if not all(outcome.taken for outcome in experiment.outcomes.known()):
            raise SystemExit("benchmarks: a step had no finite gradient")

    return step


@torch.no_grad()
def talkative(model: Textbook) -> Textbook:
    """Makes random weights speak like a trained model: a word has a few nats, a sentence about 20 words."""
    hidden = model.lstm.hidden_size
    model.output.weight.mul_(SHARPNESS)
    # Unit 0: all gates open, so that c = c0 + 0.03 t; </s> gets its logit from tanh(c).
    gates = model.lstm.bias_ih_l0.view(4, hidden)  # input, forget, cell, output
    for weight in (model.lstm.weight_ih_l0, model.lstm.weight_hh_l0):
        weight.view(4, hidden, -1)[:, 0] = 0
    gates[:, 0] = torch.tensor([20.0, 20.0, 0.03, 20.0])
    model.lstm.bias_hh_l0.view(4, hidden)[:, 0] = 0
    model.to_state.weight[0] *= 0.3
    model.to_state.bias[0] = 0
    model.output.weight[:, 0] = 0
    model.output.weight[EOS] = 0
    model.output.weight[EOS, 0] = END_SLOPE
    model.output.bias[EOS] = END_BIAS
    return model
