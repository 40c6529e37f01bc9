"""What is wrong with a recipe is told by key path and layer, all at once; any text is a recipe or such an error."""

import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from textvae import recipe_file
from textvae.build import problems as problems_of_recipe
from textvae.build import section_problems
from textvae.errors import RecipeError
from textvae.recipe import Recipe

DATA = "data: {grammar: {}}\n"
LEAST = DATA + "training: {max_epochs: 1}\n"
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def read(tmp_path):
    """Returns a function that loads a recipe text, after writing the other files it is given."""

    def load(text, *overrides, check=None, **others):
        for name, content in {"r": text, **others}.items():
            (tmp_path / f"{name}.yaml").write_text(content, encoding="utf-8")
        return recipe_file.load(tmp_path / "r.yaml", overrides, check=check)

    return load


@pytest.fixture
def problems(read):
    """Returns a function to the problems of a recipe text."""

    def find(text, *overrides, **others):
        with pytest.raises(RecipeError) as caught:
            read(text, *overrides, **others)
        return list(caught.value.problems)

    return find


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {latent_dim: -1}", "model.latent_dim: got -1; should be greater than or equal to 0"),
        ("model: {embedding_dim: 0}", "model.embedding_dim: got 0; should be greater than 0"),
        ("model: {latent_dim: 1.5}", "model.latent_dim: got 1.5; should be a whole number"),
        ("model: {latent_dim: '32'}", "model.latent_dim: got '32'; should be a whole number"),
        ("model: {latent_dim: true}", "model.latent_dim: got true; should be a whole number"),
        ("model: {share_embeddings: no}", "model.share_embeddings: got 'no'; should be true or false"),
        ("model: {word_dropout: 1}", "model.word_dropout: got 1; should be less than 1"),
        ("model: {encoder: gru}", "model.encoder: got 'gru'; should be a mapping"),
        ("model: {encoder: {kind: 3}}", "model.encoder.kind: got 3; should be text"),
        ("model: null", "model: got null; should be a mapping"),
        (
            "modle: {latent_dim: 3}",
            "modle: unknown key; known: data, evaluation, generation, model, name, objective, seed, "
            "tokenizer, training. Did you mean 'model'?",
        ),
        ("generation: {temperature: 0}", "generation.temperature: got 0; should be greater than 0"),
        ("generation: {top_p: 1.5}", "generation.top_p: got 1.5; should be less than or equal to 1"),
        (
            "generation: {metod: beam}",
            "generation.metod: unknown key; known: ban_unk, beam_size, max_length, method, "
            "temperature, top_k, top_p. Did you mean 'method'?",
        ),
        (
            "generation: {method: gredy}",
            "generation.method: got 'gredy'; known: beam, greedy, sample. Did you mean 'greedy'?",
        ),
        ("seed: -1", "seed: got -1; should be greater than or equal to 0"),
        (
            "objective: {kl: {kind: kl, weight: -1}}",
            "objective.kl.weight: got -1; should be greater than or equal to 0",
        ),
        ("objective: {kl: {kind: kl, weight: no}}", "objective.kl.weight: got 'no'; should be a number or a mapping"),
        ("objective: {kl: {kind: kl, weight: {over: 3}}}", "objective.kl.weight.kind: is missing and has no default"),
        ("objective: {kl: {weight: 3}}", "objective.kl.kind: is missing and has no default"),
        ("objective: {kl: 3}", "objective.kl: got 3; should be a mapping"),
        ("objective: {reconstruction: 3}", "objective.reconstruction: got 3; should be a mapping"),
        (
            "objective: {terms: {kind: kl}}",
            "objective.terms: a term cannot be called 'terms', which stands for something else; take another name",
        ),
        ("objective: 3", "objective: got 3; should be a mapping"),
        (
            "model: {latent_dim: 0}\nobjective: {kl: {kind: kl}}",
            "objective.kl: a language model (model.latent_dim: 0) has no "
            "latent to hold to a prior; set the term to null",
        ),
    ],
)
def test_a_mistake_is_named_by_its_key_path(problems, text, expected):
    assert problems(LEAST + text) == [expected]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("{}", "data: got none; exactly one source is needed: hub, files, folder, grammar"),
        ("3", "data: got 3; should be a mapping"),
        ("{hub: {nam: x}}", "data.hub.nam: unknown key; known: config, name, revision. Did you mean 'name'?"),
        ("{hub: x}", "data.hub: got 'x'; should be a mapping"),
        (
            "{hub: {name: x}, splits: {tran: y}}",
            "data.splits.tran: unknown key; known: test, train, validation. Did you mean 'train'?",
        ),
        ("{hub: {name: x}, limit: {train: -5}}", "data.limit.train: got -5; should be greater than 0"),
        ("{files: {trian: x}}", "data.files.trian: unknown key; known: test, train, validation. Did you mean 'train'?"),
        ("{files: {train: 3}}", "data.files.train: got 3; should be text or a list"),
        ("{files: {train: [a, 3]}}", "data.files.train.1: got 3; should be text"),
        ("{files: {test: a}}", "data.files.train: is missing; files needs train, and may have validation and test"),
        ("{files: x.txt}", "data.files: got 'x.txt'; should be a mapping"),
        ("{folder: x, format: csv}", "data.format: belongs to files, and the source is folder"),
        ("{grammar: {}, splits: {train: a}}", "data.splits: belongs to hub and folder, and the source is grammar"),
        (
            "{grammar: {}, streaming: true}",
            "data.streaming: is for hub, files and folder; the grammar is generated in memory",
        ),
        ("{grammar: {train: 0}}", "data.grammar.train: got 0; should be greater than 0"),
    ],
)
def test_a_mistake_about_the_data_is_named_by_its_key_path(problems, data, expected):
    assert expected in problems(f"data: {data}\ntraining: {{max_epochs: 1}}")


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (
            "{max_epochs: null, max_steps: null}",
            "training: max_epochs or max_steps is needed, or the training has no end",
        ),
        ("{max_steps: 0}", "training.max_steps: got 0; should be greater than 0"),
        (
            "{max_steps: 1, precision: bfloat16}",
            "training.precision: got 'bfloat16'; known: bf16, fp16, fp32. Did you mean 'bf16'?",
        ),
        (
            "{max_steps: 1, evaluate_every: soon}",
            "training.evaluate_every: got 'soon'; a duration is a number of steps (500) or text such as '10 epochs'",
        ),
        ("{max_steps: 1, evaluate_every: [1]}", "training.evaluate_every: got [1]; should be text or a whole number"),
        ("{max_steps: 1, decay: 3}", "training.decay: got 3; should be a mapping"),
        (
            "{max_stps: 1}",
            "training.max_stps: unknown key; known: accumulation, aggressive, average, batch_size, batch_tokens, "
            "bucket_batches, cuda_graphs, decay, early_stopping, evaluate_every, gradient_clip, log_every, "
            "lr_schedule, max_epochs, max_steps, monitor, optimizer, precision, samples, save_every, "
            "semi_amortized, start_from, threads, trackers. "
            "Did you mean 'max_steps'?",
        ),
    ],
)
def test_a_mistake_about_the_training_is_named_by_its_key_path(problems, training, expected):
    assert problems(f"{DATA}training: {training}") == [expected]


def test_a_recipe_of_nothing_but_mistakes_is_told_the_first_of_them_in_time(problems):
    keys = "".join(f"k{number}: 1\n" for number in range(20_000))
    began = time.monotonic()
    said = problems(f"data: {{grammar: {{}}}}\ntraining: {{max_steps: 1}}\n{keys}")
    assert time.monotonic() - began < 20  # minutes, when each was looked for among all
    assert any("k0: unknown key" in line for line in said)
    assert any("more such problems" in line for line in said)
    terms = "".join(f"  t{number}: {{kind: kl}}\n" for number in range(200))
    said = problems(f"{LEAST}objective:\n{terms}")
    assert any("got 200 terms" in line for line in said), said


def test_all_mistakes_are_told_at_once_with_the_file(read, tmp_path):
    with pytest.raises(RecipeError) as caught:
        read("sed: 1\nmodel: {latent_dim: -1}\ngeneration: {temperature: 0}\nobjective: {kl: 3}")
    assert [p.split(":")[0] for p in caught.value.problems] == [
        "data",
        "model.latent_dim",
        "objective.kl",
        "generation.temperature",
        "sed",
    ]
    assert all(line.startswith(f"{tmp_path}/r.yaml: ") for line in str(caught.value).splitlines())


def test_a_mistake_of_another_layer_is_named_with_it(problems, tmp_path):
    found = problems("extends: base.yaml\nmodel: {latent_dim: -1}", "generation.temperature=0", base=LEAST + "seed: -3")
    assert found == [
        f"seed: got -3; should be greater than or equal to 0 (set in {tmp_path}/base.yaml)",
        "model.latent_dim: got -1; should be greater than or equal to 0",
        "generation.temperature: got 0; should be greater than 0 (set on the command line)",
    ]


def test_a_mistake_that_a_later_layer_mends_is_none(read):
    assert read("extends: base.yaml", "seed=3", base=LEAST + "seed: -3").seed == 3


def test_a_check_of_the_caller_adds_its_problems_with_their_origin(read, problems):
    seen = []

    def check(recipe):
        seen.append(recipe.seed)
        return ["model.encoder.cell: got 'lstn'", "seed: odd"]

    found = problems(LEAST + "seed: 3", "model.encoder.cell=lstn", check=check)
    assert seen == [3]
    assert found == ["model.encoder.cell: got 'lstn' (set on the command line)", "seed: odd"]
    assert read(LEAST, check=lambda recipe: []).seed == 0


def test_options_put_into_a_section_are_checked_as_a_recipe_is(read):
    generation = read(LEAST).generation
    assert recipe_file.with_options(generation, {"top_k": 5}, "generation").top_k == 5
    with pytest.raises(ValueError, match=r"^generation.temperature: got 0; should be greater than 0$"):
        recipe_file.with_options(generation, {"temperature": 0}, "generation")


SNIPPETS = st.sampled_from(
    [
        "data:",
        "grammar:",
        " {}",
        "\n",
        "  ",
        "- ",
        "a: ",
        "extends: ",
        "objective:",
        "kl:",
        "kind: kl",
        "weight: ",
        "'",
        '"',
        "[",
        "]",
        "{",
        "}",
        "&x ",
        "*x",
        "!!",
        "!!bool ",
        "? ",
        ": ",
        "|",
        ">",
        "#",
        "%YAML 1.2\n",
        "---",
        "...",
        "\t",
        "<<: ",
        "files: {train: ~x/y}",
        "~",
        "null",
        "1e5",
        ".inf",
        "-1",
        "\x85",
        "\ufeff",
        "\\ud800",
        "max_epochs: 1",
        "training: ",
    ]
)


@quick
@given(st.lists(SNIPPETS | st.text(max_size=4), max_size=16).map("".join))
@example("data: {folder: ~nobody_of_that_name/x}")
@example("extends: " + "a" * 5000)
@example("objective: {terms: {kind: kl}}")
@example("objective: {kl: {weight: {a: 1}}}\ndata: {files: [1]}\ntokenizer: [path]")
def test_any_text_is_a_recipe_or_an_error_for_people(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        found = recipe_file.load(tmp_path / "r.yaml")
    except RecipeError as error:
        found = error
    assert isinstance(found, Recipe) or found.problems


@quick
@given(st.binary(max_size=40))
def test_any_bytes_are_a_recipe_or_an_error_for_people(tmp_path, data):
    (tmp_path / "r.yaml").write_bytes(data)
    with pytest.raises(RecipeError):
        recipe_file.load(tmp_path / "r.yaml")


@quick
@given(st.text(max_size=20), st.lists(SNIPPETS | st.text(max_size=4), max_size=8).map("".join))
@example("data.files.train", "/tmp/\udcff.txt")
@example("data.folder", "~nobody_of_that_name/x")
def test_any_override_is_taken_or_an_error_for_people(tmp_path, path, value):
    (tmp_path / "r.yaml").write_text(LEAST)
    try:
        found = recipe_file.load(tmp_path / "r.yaml", [f"{path}={value}"])
    except RecipeError as error:
        found = error
    assert isinstance(found, Recipe) or found.problems


def test_a_wrong_shape_hides_no_wrong_section(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        DATA + "model: {latent_dmi: 4, decoder: {hidden_dmi: 3}, noise: [{kind: drop}, {kind: swop}]}\n"
        "objective: {kl: {kind: klx, weight: {kind: linaer}}, reconstruction: {kind: cross}, mmd: 3}\n"
        "training: {max_steps: -3, optimizer: {kind: sgd, lr: -1.0}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        recipe_file.load(path, ["training.batch_size=0"], check=problems_of_recipe, check_sections=section_problems)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "model.latent_dmi",
        "objective.mmd",
        "training.batch_size",
        "training.max_steps",
        "model.decoder.hidden_dmi",
        "model.noise.0.kind",
        "model.noise.1.kind",
        "objective.reconstruction.kind",
        "objective.kl.kind",
        "objective.kl.weight.kind",
        "training.optimizer.lr",
    ]
