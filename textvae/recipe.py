"""One experiment as typed, frozen values: the shape of a recipe. Reading the YAML is `recipe_file`'s work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from textvae.durations import LARGEST, parse_duration
from textvae.errors import suggest

# Sizes are bounded, so that one written by mistake or by a stranger is refused before memory is asked for.
LARGEST_OF = {
    **dict.fromkeys(("latent_dim", "embedding_dim", "hidden_dim", "components", "projections"), 2**16),
    **dict.fromkeys(("layers", "transforms", "threads", "stream_workers"), 2**8),
    **dict.fromkeys(("steps", "iterations", "starts", "samples", "beam_size"), 10**4),
    **dict.fromkeys(("train", "validation", "test"), 10**9),
    **dict.fromkeys(("batch_size", "accumulation", "shuffle_buffer", "max_length", "iw_samples"), 10**8),
    "vocab_size": 2**24,
}
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
# What an evaluation while training measures, besides each term by its name.
MONITORS = ("loss", "reconstruction", "kl", "nll_elbo", "ppl_elbo", "mutual_information", "active_units")
SOURCES = ("hub", "files", "folder", "grammar")


class Frozen(BaseModel):
    """Immutable, no unknown keys, no silent conversions, no sizes beyond all use."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        for name, value in self:
            largest = LARGEST_OF.get(name, LARGEST)
            if isinstance(value, int) and abs(value) > largest:
                raise ValueError(f".{name}: got {value}; should be at most {largest:,}")
        return self


class Section(Frozen):
    """`kind` and its options; the registry of the family checks them against the constructor."""

    model_config = ConfigDict(extra="allow")

    kind: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the section as a plain mapping, `kind` included."""
        return self.model_dump()


def section(kind: str, **options: Any) -> Any:
    """Returns a field whose default is a section."""
    return Field(default_factory=lambda: Section(kind=kind, **options))


def defaults_to(kind: str) -> BeforeValidator:
    """Returns a validator that puts in the `kind` where a section names none."""

    def fill(value: Any) -> Any:
        return {"kind": kind, **value} if isinstance(value, Mapping) else value

    return BeforeValidator(fill)


class Hub(Frozen):
    """A data set of the Hugging Face Hub."""

    name: str = Field(min_length=1)
    config: str | None = None
    revision: str | None = None


class Grammar(Frozen):
    """The built-in corpus; counts are sentences drawn independently."""

    seed: int = 0
    train: Count = 20_000
    validation: Count = 2_000
    test: Count = 2_000


class Data(Frozen):
    """Where the sentences come from (exactly one source) and which of them are kept."""

    hub: Hub | None = None
    files: dict[Part, str | list[str]] | None = None
    folder: str | None = Field(default=None, description="a folder written by datasets' save_to_disk")
    grammar: Grammar | None = None
    format: Literal["text", "csv", "tsv", "json", "parquet"] | None = Field(
        default=None, description="of `files`; read from their names where absent"
    )
    splits: dict[Part, str] | None = Field(default=None, description="the parts' names in `hub` and `folder`")
    column: str | None = Field(default=None, description="the column of sentences; needed where there are several")
    streaming: bool = Field(default=False, description="never hold the training part; read it anew each epoch")
    stream_shares: bool = Field(default=False, description="each process reads its own share of a stream, not all")
    stream_workers: Annotated[int, Field(ge=0)] = Field(default=0, description="processes that read a stream ahead")
    shuffle_buffer: Count = Field(default=10_000, description="sentences held to shuffle and to sort a stream")
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        default=None, description="cut from the training part where there is no validation part (0.05 if absent)"
    )
    max_length: Count | None = Field(default=None, description="tokens a sentence, </s> counted")
    too_long: Literal["drop", "truncate"] = Field(default="drop", description="what happens beyond max_length")
    limit: dict[Part, Count] | None = Field(default=None, description="at most so many sentences of a part")
    tokenizer_sentences: Count | None = Field(default=None, description="of train, that teach the tokenizer (all)")
    lowercase: bool = False
    normalize: Literal["NFC", "NFKC"] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"got {', '.join(given)}" if given else "got none"
            raise ValueError(f"{found}; exactly one source is needed: {', '.join(SOURCES)}")
        if self.files is not None and "train" not in self.files:
            raise ValueError(".files.train: is missing; files needs train, and may have validation and test")
        if self.format is not None and self.files is None:
            raise ValueError(f".format: belongs to files, and the source is {given[0]}")
        if self.splits is not None and self.hub is None and self.folder is None:
            raise ValueError(f".splits: belongs to hub and folder, and the source is {given[0]}")
        if self.validation_fraction is not None:
            if (self.files or {}).get("validation") or (self.splits or {}).get("validation") or self.grammar:
                raise ValueError(".validation_fraction: is given, and so is a validation part; keep one of them")
            if self.streaming:
                raise ValueError(".validation_fraction: cannot cut a stream; name a validation file or split")
        if self.streaming and self.files is not None and "validation" not in self.files:
            raise ValueError(".files.validation: is missing, and a stream cannot be cut; name a validation part")
        if (self.stream_shares or self.stream_workers) and not self.streaming:
            raise ValueError(".streaming: is needed for stream_shares and stream_workers")
        if self.streaming and self.grammar is not None:
            raise ValueError(".streaming: is for hub, files and folder; the grammar is generated in memory")
        return self

    @property
    def source(self) -> str:
        """Which of the sources is given."""
        return next(name for name in SOURCES if getattr(self, name) is not None)


class Model(Frozen):
    """The sizes and parts of a SequenceVAE. latent_dim 0 is the language model: decoder only."""

    latent_dim: Annotated[int, Field(ge=0)] = 32
    embedding_dim: Count = 256
    encoder: Annotated[Section, defaults_to("recurrent")] = section("recurrent")
    decoder: Annotated[Section, defaults_to("recurrent")] = section("recurrent")
    output: Annotated[Section, defaults_to("softmax")] = section("softmax")
    posterior: Annotated[Section, defaults_to("gaussian")] = section("gaussian")
    prior: Annotated[Section, defaults_to("standard_normal")] = section("standard_normal")
    share_embeddings: bool = Field(default=False, description="one embedding table for encoder and decoder")
    tie_output: bool = Field(default=False, description="the output matrix is the decoder's embedding table")
    word_dropout: Share = Field(default=0.0, description="share of the decoder's input words replaced by <unk>")
    noise: list[Section] = Field(
        default_factory=list, description="on the encoder's input words, in training only: the decoder denoises"
    )
    initialization: Annotated[Section, defaults_to("default")] = section("default")


def _no_key(name: str) -> str:
    # Beside `reconstruction`, or in a row of metrics, it would take another's place.
    taken = "terms reconstruction step part epoch loss learning_rate gradient_norm tokens_per_s elapsed_s"
    if name in taken.split() or name.endswith("_weight"):
        raise ValueError(f"a term cannot be called {name!r}, which stands for something else; take another name")
    return name


TermName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$"), AfterValidator(_no_key)]


class Term(Section):
    """One term of the objective: a divergence by `kind`, its options, and its weight's schedule."""

    weight: Annotated[float, Field(ge=0.0)] | Section = 1.0


class Objective(Frozen):
    """Reconstruction plus named terms; a term set to null is left out."""

    reconstruction: Annotated[Section, defaults_to("cross_entropy")] = section("cross_entropy")
    terms: dict[TermName, Term] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _terms_by_name(cls, values: Any) -> Any:
        # A recipe writes `objective: {kl: {...}}`; here the terms are one mapping.
        if not isinstance(values, Mapping) or "terms" in values:
            return values
        terms = {k: v for k, v in values.items() if k != "reconstruction" and v is not None}
        rest = {k: v for k, v in values.items() if k == "reconstruction"}
        return {**rest, "terms": terms}

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.terms) > 100:
            raise ValueError(f"got {len(self.terms):,} terms; should be at most 100")
        return self


class StartFrom(Frozen):
    """A finished run whose parameters this training starts from; the rest start as `model.initialization` says.

    Encoder alone is the second half of autoencoder pretraining (Li 2019, arXiv 1909.00868): the decoder starts anew,
    but for embeddings that it shares with the encoder.
    """

    run: str = Field(description="a run folder; relative to the recipe's file")
    part: Literal["encoder", "all"] = "encoder"


class Aggressive(Frozen):
    """Several steps of the encoder for each of the decoder, until z stops gaining (He 2019, arXiv 1901.05534).

    Before a step of the decoder, the encoder alone takes up to `steps` steps on batches of its own; every `window`
    of them their mean loss is looked at, and the encoder stops when it no longer falls. It is all off for good once the
    validation part's mutual information has fallen from one evaluation to the next.
    """

    steps: Count = Field(default=100, description="steps of the encoder at most")
    window: Count = Field(default=15, description="steps whose mean loss is compared with that of those before")


class SemiAmortized(Frozen):
    """Each sentence's posterior goes on from the encoder's by gradient steps of its own (Kim 2018, arXiv 1802.02550).

    The decoder learns from the refined posterior, and the encoder through the steps, whose second derivatives are
    finite differences. A step costs about 3 x `steps` + 2 passes forward and back.
    """

    steps: Count = Field(default=10, description="gradient steps on mean and scale of each posterior")
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Share = 0.5
    clip: Annotated[float, Field(gt=0)] | None = Field(default=5.0, description="norm of a sentence's gradient at most")


class Training(Frozen):
    """How the parameters are found. The batch is one optimiser step's, over all processes."""

    batch_size: Count = Field(default=32, description="sentences an optimiser step, over all processes")
    batch_tokens: Count | None = Field(default=None, description="padded tokens a step at most, besides batch_size")
    bucket_batches: Count = Field(default=100, description="batches' worth of sentences sorted by length together")
    accumulation: Count = Field(
        default=1, description="pieces a batch is worked through in, for memory; statistics of a batch are of a piece"
    )
    max_epochs: Count | None = None
    max_steps: Count | None = None
    samples: Count = Field(default=1, description="draws of z a sentence in a step")
    start_from: StartFrom | None = Field(default=None, description="parameters of a finished run to start from")
    aggressive: Aggressive | None = Field(default=None, description="aggressive training of the encoder")
    semi_amortized: SemiAmortized | None = Field(default=None, description="gradient steps on each posterior")
    optimizer: Annotated[Section, defaults_to("adamw")] = section("adamw", lr=1e-3)
    lr_schedule: Annotated[Section, defaults_to("constant")] = section("constant")
    decay: Annotated[Section, defaults_to("plateau")] | None = Field(
        default=None, description="lowers the learning rate when validation stalls"
    )
    average: Annotated[Section, defaults_to("exponential")] | None = Field(
        default=None, description="an average of the parameters over steps, which is what is measured and kept"
    )
    gradient_clip: Annotated[float, Field(gt=0)] | None = 5.0
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="of products; in half precision cuDNN's recurrent cells are given float16 by torch"
    )
    cuda_graphs: bool = Field(
        default=True, description="on one GPU, start the kernels of a batch's shape together once it was seen before"
    )
    evaluate_every: str | Count = Field(default="1 epoch", description="steps, or epochs as in '1 epoch'")
    monitor: str = Field(
        default="loss",
        description="the validation figure that picks the best checkpoint; loss is the objective at its final weights",
    )
    early_stopping: Count | None = Field(
        default=None, description="evaluations without gain in a row before the end; a decay starts the count anew"
    )
    save_every: Count | None = Field(default=None, description="steps between checkpoints, besides evaluations")
    log_every: Count = 50
    trackers: list[str] = Field(default_factory=list, description="accelerate's trackers by name: tensorboard, ...")
    threads: Count | None = Field(default=None, description="CPU threads; torch's own choice where absent")

    @field_validator("evaluate_every")
    @classmethod
    def _duration(cls, value: str | int) -> str | int:
        parse_duration(value)
        return value


class Evaluation(Frozen):
    """What `textvae evaluate` computes."""

    iw_samples: Count = Field(default=500, description="importance samples a sentence")
    batch_tokens: Count = Field(default=20_000, description="padded tokens times samples worked on at once")
    bleu_sentences: Count = Field(default=1_000, description="sentences reconstructed for BLEU, the part's first")


class Generation(Frozen):
    """How text is decoded where the command does not say."""

    method: Literal["greedy", "sample", "beam"] = "sample"
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    top_k: Count | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    beam_size: Count = 5
    max_length: Count = Field(default=100, description="tokens, </s> counted")
    ban_unk: bool = False


class Recipe(Frozen):
    """One experiment, whole."""

    name: str = "run"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: Data
    tokenizer: Annotated[Section, defaults_to("word")] = section("word")
    model: Model = Field(default_factory=Model)
    objective: Objective = Field(default_factory=Objective)
    training: Training = Field(default_factory=Training)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    generation: Generation = Field(default_factory=Generation)

    @model_validator(mode="before")
    @classmethod
    def _default_objective(cls, values: Any) -> Any:
        # With latents and nothing said, the objective is the ELBO; a language model has no term.
        if isinstance(values, Mapping) and "objective" not in values:
            model = values.get("model")
            latent = model.get("latent_dim") if isinstance(model, Mapping) else None
            if latent != 0:
                return {**values, "objective": {"kl": {"kind": "kl"}}}
        return values

    @model_validator(mode="before")
    @classmethod
    def _output_of_the_reconstruction(cls, values: Any) -> Any:
        # A distance of embeddings is predicted by an output layer of its own: named here, so that one line is enough.
        if not isinstance(values, Mapping):
            return values
        model, objective = values.get("model", {}), values.get("objective")
        chosen = objective.get("reconstruction") if isinstance(objective, Mapping) else None
        kind = chosen.get("kind") if isinstance(chosen, Mapping) else None
        if kind in ("squared_error", "cosine") and isinstance(model, Mapping) and "output" not in model:
            return {**values, "model": {**model, "output": {"kind": "nearest_embedding", "distance": kind}}}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.model.latent_dim == 0 and self.objective.terms:
            names = ", ".join(f"objective.{name}" for name in self.objective.terms)
            said = "has no latent to hold to a prior; set the term to null"
            raise ValueError(f"{names}: a language model (model.latent_dim: 0) {said}")
        measured = [*MONITORS, *(f"term_{name}" for name in self.objective.terms)]
        if self.training.monitor not in measured:
            found = f"got {self.training.monitor!r}, which is no figure of an evaluation"
            raise ValueError(f"training.monitor: {found}{suggest(self.training.monitor, measured)}")
        if self.model.latent_dim == 0 and self.training.aggressive is not None:
            raise ValueError("training.aggressive: a language model (model.latent_dim: 0) has no encoder to train")
        if self.training.aggressive is not None and self.data.streaming:
            raise ValueError("training.aggressive: draws batches from all of the corpus, which a stream cannot give")
        if self.training.max_epochs is None and self.training.max_steps is None:
            raise ValueError("training: max_epochs or max_steps is needed, or the training has no end")
        return self

    def resolved(self) -> dict[str, Any]:
        """Returns the recipe as plain values that read back to an equal recipe, defaults written out."""
        plain = self.model_dump(mode="json")
        objective = plain["objective"]
        plain["objective"] = {"reconstruction": objective["reconstruction"], **objective["terms"]}
        return plain
