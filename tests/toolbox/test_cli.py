"""The toolbox in the shell: one object a line, seeds that repeat, mistakes in one line."""

import contextlib
import io
import json

import pyarrow.parquet as pq
import pytest
import torch

from textvae.cli import main
from textvae.text import grammar
from textvae.toolbox import Aggregate, path_along


@pytest.fixture(scope="module")
def files(tmp_path_factory, corpus, unseen):
    folder = tmp_path_factory.mktemp("toolbox-files")
    (folder / "few.txt").write_text("\n".join(unseen[:12]) + "\n")
    (folder / "empty.txt").touch()
    (folder / "corpus.txt").write_text("\n".join(corpus[:300]) + "\n")
    (folder / "corpus.label").write_text("\n".join(grammar.attributes(text)["tense"] for text in corpus[:300]) + "\n")
    return folder


def called(capfdbinary, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capfdbinary.readouterr().out.decode().splitlines()


def objects(capfdbinary, *arguments):
    return [json.loads(line) for line in called(capfdbinary, *arguments, "--json")]


def test_sentences_are_mixed_and_compared_and_moved(run, vae, files, unseen, capfdbinary):
    a, b, c = unseen[:3]
    (mixed,) = objects(capfdbinary, "mix", run, a, b, c, "--weights", "0,1,0")
    assert mixed == {"text": vae.reconstruct([b])[0]}
    (like,) = objects(capfdbinary, "analogy", run, a, b, a)
    assert like["text"] == vae.reconstruct([b])[0]
    arguments = ["shift", run, files / "corpus.txt", files / "few.txt", "--to", "future", "--from", "past"]
    rows = objects(capfdbinary, *arguments)
    assert [row["text"] for row in rows] == unseen[:12]
    assert called(capfdbinary, *arguments) == [row["result"] for row in rows]
    still = [row["result"] for row in objects(capfdbinary, *arguments, "--strength", "0")]
    assert still == vae.reconstruct(unseen[:12])


def test_around_and_along_a_sentence(run, vae, unseen, capfdbinary):
    arguments = ["perturb", run, unseen[0], "-n", "6", "--radius", "3", "--seed", "1"]
    assert len(called(capfdbinary, *arguments)) == 6
    assert called(capfdbinary, *arguments) == called(capfdbinary, *arguments)
    rows = objects(capfdbinary, "traverse", run, unseen[0], "--dimension", "3", "--steps", "5", "--low", "-2")
    assert [row["value"] for row in rows] == pytest.approx([-2, -0.75, 0.5, 1.75, 3])
    (middle,) = [row for row in objects(capfdbinary, "traverse", run, "--steps", "3") if row["value"] == 0]
    assert middle["text"] == vae.decode(torch.zeros(1, 8), method="greedy")[0]


def test_a_path_along_the_data(run, vae, files, corpus, unseen, capfdbinary):
    a, b = unseen[:2]
    arguments = ["interpolate", run, a, b, "--steps", "5", "--path", "data", "--corpus", files / "corpus.txt"]
    z = vae.encode([a, b])
    path = path_along(z[0], z[1], 5, Aggregate(*vae.encode_distribution(corpus[:300])))
    assert called(capfdbinary, *arguments) == vae.decode(path, method="greedy")


def test_neighbours_and_oddness(run, files, unseen, capfdbinary):
    rows = objects(capfdbinary, "neighbours", run, files / "few.txt", files / "few.txt", "-k", "2")
    assert [row["rank"] for row in rows] == [1, 2] * 12
    assert [row["text"] for row in rows[::2]] == unseen[:12]
    rows = objects(
        capfdbinary, "anomaly", run, files / "corpus.txt", files / "few.txt", "--tokens", "--percentile", "90"
    )
    assert len(rows) == 12
    assert set(rows[0]) == {"text", "nats", "nats_per_token", "above", "anomalous", "threshold", "tokens"}
    for row in rows:
        assert row["anomalous"] == (row["nats_per_token"] > row["threshold"])
        assert [token for token, _ in row["tokens"]] == [*row["text"].split(), "</s>"]
    marks = [line[0] for line in called(capfdbinary, "anomaly", run, files / "corpus.txt", files / "few.txt")]
    assert set(marks) <= {" ", "*"}


def test_samples_of_a_label(run, files, capfdbinary):
    arguments = ["sample-label", run, files / "corpus.txt", "past", "-n", "20", "--components", "2", "--seed", "0"]
    rows = objects(capfdbinary, *arguments, "--method", "greedy")
    assert [row["label"] for row in rows] == ["past"] * 20
    assert objects(capfdbinary, *arguments, "--method", "greedy") == rows


def test_a_map_of_a_corpus(run, vae, files, corpus, tmp_path, capfdbinary):
    out = tmp_path / "map.parquet"
    (row,) = objects(capfdbinary, "map", run, files / "corpus.txt", "--out", out, "--chunk", "64")
    assert row == {"rows": 300, "latent_dim": 8, "out": str(out)}
    table = pq.read_table(out)
    assert table["text"].to_pylist() == corpus[:300]
    assert table["label"].to_pylist() == [grammar.attributes(text)["tense"] for text in corpus[:300]]
    torch.testing.assert_close(torch.tensor(table["mean"].to_pylist()), vae.encode(corpus[:300]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "unknown"),
    [
        (["mix", "{run}", "the zebra slept .", "the dog slept ."], "zebra"),
        (["analogy", "{run}", "the dog slept .", "a dog slept .", "the zebra slept ."], "a, zebra"),
        (["perturb", "{run}", "the zebra slept .", "-n", "1"], "zebra"),
        (["traverse", "{run}", "the zebra slept .", "--steps", "2"], "zebra"),
        (
            ["neighbours", "{run}", "{files}/few.txt", "{files}/many.txt"],
            "w0, w1, w2, w3, w4, w5, w6, w7, w8, w9 and 3 more",
        ),
        (
            ["shift", "{run}", "{files}/corpus.txt", "{files}/many.txt", "--to", "past"],
            "w0, w1, w2, w3, w4, w5, w6, w7, w8, w9 and 3 more",
        ),
    ],
)
def test_words_that_the_vocabulary_lacks_are_said(run, files, arguments, unknown, capfdbinary):
    (files / "many.txt").write_text("\n".join(f"the w{i} slept ." for i in range(13)) + "\n")
    arguments = [part.replace("{run}", str(run)).replace("{files}", str(files)) for part in arguments]
    assert main(arguments) == 0
    assert capfdbinary.readouterr().err.decode() == f"textvae: not in the vocabulary, read as <unk>: {unknown}\n"


def test_where_all_words_are_known_nothing_is_said(run, unseen, capfdbinary):
    for arguments in (["mix", run, *unseen[:2]], ["perturb", run, unseen[0]], ["traverse", run, "--steps", "2"]):
        assert main([str(argument) for argument in arguments]) == 0
        assert capfdbinary.readouterr().err == b""


def test_an_unknown_word_is_shown_among_the_tokens(run, files, capfdbinary):
    (files / "odd.txt").write_text("the zebra slept .\n")
    (line,) = called(capfdbinary, "anomaly", run, files / "corpus.txt", files / "odd.txt", "--tokens")
    assert " zebra(<unk>):" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mix", "{run}", "a", "b", "--weights", "1"], "weights: got 1 for 2"),
        (["mix", "{run}", "a", "b", "--weights", "1,x"], "with commas between them"),
        (["mix", "no/run", "a"], "holds no run"),
        (["analogy", "{run}", "a", "b"], "required: C"),
        (["analogy", "{run}", "a", "b", "c", "--strength", "nan"], "strength"),
        (["shift", "{run}", "{files}/corpus.txt", "{files}/few.txt", "--to", "futur"], "Did you mean 'future'"),
        (["shift", "{run}", "{files}/few.txt", "{files}/few.txt", "--to", "future"], "there is no"),
        (["perturb", "{run}", "a", "-n", "-1"], "-n: got -1; it must be 1 or more"),
        (["perturb", "{run}", "a", "-n", "0"], "-n: got 0"),
        (["perturb", "{run}", ""], "text: is empty"),
        (["perturb", "{run}", "a", "--radius", "1e20"], "radius: got 1e+20"),
        (["traverse", "{run}", ""], "text: is empty"),
        (["mix", "{run}", "a", ""], "texts: is empty"),
        (["analogy", "{run}", "a", "", "c"], "b: is empty"),
        (["analogy", "{run}", "a", "b", "c", "--strength", "1e30"], "strength: got 1e+30"),
        (["interpolate", "{run}", "a", ""], "b: is empty"),
        (["perturb", "{run}", "a", "-n", "1000000000"], "at most"),
        (["traverse", "{run}", "a", "--dimension", "8"], "there are 8, counted from 0"),
        (["neighbours", "{run}", "missing.txt", "{files}/few.txt"], "missing.txt"),
        (["neighbours", "{run}", "{files}/few.txt", "{files}/few.txt", "--backend", "fais"], "Did you mean 'faiss'"),
        (["neighbours", "{run}", "{files}/few.txt", "{files}/few.txt", "-k", "0"], "k: got 0"),
        (["anomaly", "{run}", "{files}/few.txt", "{files}/few.txt", "--percentile", "0"], "percentile"),
        (["sample-label", "{run}", "{files}/corpus.txt", "passt"], "Did you mean 'past'"),
        (["sample-label", "{run}", "{files}/corpus.txt", "past", "--kind", "mixtur"], "Did you mean 'mixture'"),
        (["sample-label", "{run}", "{files}/corpus.txt", "past", "--components", "0"], "components: got 0"),
        (["sample-label", "{run}", "{files}/corpus.txt", "past", "--components", "-3"], "components: got -3"),
        (["sample-label", "{run}", "{files}/corpus.txt", "past", "-n", "0"], "-n: got 0"),
        (["fit-prior", "{run}", "--kind", "mixture", "--components", "-1", "--sentences", "20"], "components: got -1"),
        (["fit-prior", "{run}", "--sentences", "-5"], "sentences: got -5"),
        (["score", "{run}", "{files}/few.txt", "--iw-samples", "-1"], "iw_samples: got -1"),
        (["score", "{run}", "{files}/few.txt", "--iw-samples", "100000000"], "at most 1,000,000"),
        (["map", "{run}", "{files}/corpus.txt"], "--out"),
        (["map", "{run}", "{files}/corpus.txt", "--out", "{files}"], "is a folder; name a file"),
        (["bench", "{run}", "{files}/empty.txt"], "empty.txt: has no line of text"),
        (["map", "{run}", "{files}/none.csv", "--out", "{files}/m.parquet"], "is no file"),
        (["map", "{run}", "{run}/recipe.yaml", "--out", "{files}/m.parquet"], "--corpus-format"),
        (["map", "{run}", "{files}/corpus.txt", "--out", "{files}/no/m.parquet"], "/no/m.parquet: cannot be written"),
        (["interpolate", "{run}", "a", "b", "--corpus", "{files}/few.txt"], "--path data"),
    ],
)
def test_a_users_mistake_is_one_clear_message_and_exit_code_2(run, files, arguments, message):
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        try:
            code = main([part.replace("{run}", str(run)).replace("{files}", str(files)) for part in arguments])
        except SystemExit as exit_:  # argparse's own
            code = exit_.code
    assert code == 2
    assert message in error.getvalue()
    assert "Traceback" not in error.getvalue()
    assert ".part" not in error.getvalue()
