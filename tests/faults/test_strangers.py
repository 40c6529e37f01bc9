"""Strangers' files: loading a run executes nothing, reads nothing outside it, asks for no memory beyond its own."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
import yaml

import textvae
from textvae import checkpoint, recipe_file
from textvae.cli import main
from textvae.errors import CheckpointError, TokenizerError, UserError
from textvae.recipe import Recipe
from textvae.registry import UntrustedCodeError
from textvae.text import growth
from textvae.training import train


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "train.txt").write_text("the cat sees the dog\nthe dog runs\n" * 20)
    values = {
        "data": {"files": {"train": str(folder / "train.txt")}},
        "model": {"latent_dim": 2, "embedding_dim": 4, "encoder": {"hidden_dim": 4}, "decoder": {"hidden_dim": 4}},
        "training": {"batch_size": 8, "max_steps": 2, "threads": 1},
    }
    run = train(Recipe.model_validate(values), folder / "run", quiet=True)
    assert main(["fit-prior", str(run)]) == 0
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run, to be spoiled."""
    shutil.copytree(trained, tmp_path / "run")
    assert len(textvae.load(tmp_path / "run").sample(1, seed=0)) == 1
    return tmp_path / "run"


FILES = ["recipe.yaml", "model.safetensors", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", [*FILES, "fitted_prior.safetensors"])
def test_a_pickle_under_the_name_of_any_file_is_refused_and_not_run(run, tmp_path, name, protocol):
    (run / name).write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol=protocol))
    with pytest.raises(UserError) as caught:
        textvae.load(run)
    assert name.split("/")[-1] in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [*FILES, "fitted_prior.safetensors"])
def test_a_torch_file_under_the_name_of_any_file_is_refused_and_not_run(run, tmp_path, name):
    torch.save({"weights": Evil(tmp_path / "ran")}, run / name)
    with pytest.raises(UserError):
        textvae.load(run)
    assert not (tmp_path / "ran").exists()


def with_checksum(folder) -> None:
    """As someone who knows the format would leave it."""
    saved = json.loads((folder / "state.json").read_text())
    saved["sha256"]["training.pt"] = hashlib.sha256((folder / "training.pt").read_bytes()).hexdigest()
    (folder / "state.json").write_text(json.dumps(saved))


def test_a_checkpoint_with_code_or_packed_is_refused(run, tmp_path):
    last = checkpoint.latest_checkpoint(run)
    model = textvae.load(run).model
    good = (last / "training.pt").read_bytes()
    torch.save({"optimizer": Evil(tmp_path / "ran")}, last / "training.pt")
    with_checksum(last)
    with pytest.raises(CheckpointError, match=r"training\.pt: cannot be read safely"):
        checkpoint.load_checkpoint(last, model)
    assert not (tmp_path / "ran").exists()
    # Packed, a few kilobytes could become gigabytes while they are read.
    (tmp_path / "good.pt").write_bytes(good)
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as source,
        zipfile.ZipFile(last / "training.pt", "w", compression=zipfile.ZIP_DEFLATED) as packed,
    ):
        for item in source.infolist():
            packed.writestr(item.filename, source.read(item))
    with_checksum(last)
    with pytest.raises(CheckpointError, match="packed"):
        checkpoint.load_checkpoint(last, model)


def rewrite(run, **changes) -> None:
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    for path, value in changes.items():
        *way, last = path.split("__")
        holder = values
        for key in way:
            holder = holder[key]
        holder[last] = value
    (run / "recipe.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(
    "path",
    ["model__encoder", "model__decoder", "model__posterior", "model__prior", "model__output", "tokenizer",
     "model__initialization", "objective__kl", "objective__reconstruction", "training__optimizer"],
)  # fmt: skip
def test_code_that_a_recipe_names_is_not_imported_unless_it_is_trusted(run, tmp_path, monkeypatch, path, capfd):
    (tmp_path / "strange.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Part: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    rewrite(run, **{path: {"kind": "strange.Part"}})
    with pytest.raises(UserError, match="trust_code=True"):
        textvae.load(run)
    assert main(["sample", str(run), "-n", "1"]) == 2
    said = capfd.readouterr().err
    assert "--trust-code" in said
    assert path.replace("__", ".") in said
    assert not (tmp_path / "ran").exists()


def test_a_runs_recipe_cannot_have_other_files_read(run, tmp_path):
    secret = tmp_path / "secret.yaml"
    secret.write_text("password: abc")
    text = (run / "recipe.yaml").read_text()
    for extends in ("../secret.yaml", str(secret), "[../secret.yaml]"):
        (run / "recipe.yaml").write_text(f"extends: {extends}\n{text}")
        with pytest.raises(UserError, match="a run folder's recipe is whole") as caught:
            textvae.load(run)
        assert "abc" not in str(caught.value)
    assert recipe_file.load  # a recipe outside a run may extend others: tests/test_recipe_file.py


@pytest.mark.parametrize("model", ["../../secret.json", "/etc/passwd", "tokenizer.json/../../x", "", 3, {}])
def test_a_tokenizers_file_cannot_lie_outside_its_folder(run, model):
    path = run / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": model}))
    with pytest.raises(TokenizerError, match="damaged"):
        textvae.load(run)


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_a_device_or_a_pipe_does_not_hang_or_fill_memory(run, tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    for target in ("/dev/zero", tmp_path / "pipe", tmp_path):
        (run / name).unlink()
        (run / name).symlink_to(target)
        with pytest.raises(UserError):
            textvae.load(run)


def test_a_link_to_a_file_is_read_as_caches_have_it(run, tmp_path):
    for number, name in enumerate(FILES):
        (run / name).rename(tmp_path / str(number))
        (run / name).symlink_to(tmp_path / str(number))
    assert len(textvae.load(run).sample(1, seed=0)) == 1


@pytest.mark.parametrize("name", [".fitted_prior.safetensors.part", "fitted_prior.safetensors"])
def test_a_link_in_a_strangers_run_is_not_written_through(run, tmp_path, name):
    (tmp_path / "mine").write_text("mine")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "mine")
    checkpoint.save_prior("gaussian", torch.nn.Linear(2, 2), run)
    assert (tmp_path / "mine").read_text() == "mine"


def tampered(run, change) -> None:
    """Changes tokenizer.json and its checksum."""
    path, config = run / "tokenizer" / "tokenizer.json", run / "tokenizer" / "tokenizer_config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    config.write_text(json.dumps({**json.loads(config.read_text()), "sha256": digest}))


def test_a_tokenizer_whose_ids_ask_for_memory_is_refused(run):
    tampered(run, lambda values: values["model"]["vocab"].update(cat=4_000_000_000))
    with pytest.raises(TokenizerError, match="ids up to 4,000,000,000; a vocabulary is at most"):
        textvae.load(run)


def test_special_ids_that_ask_for_memory_are_refused(run):
    path = run / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["special_ids"]["pad"] = 10**12
    path.write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="at most"):
        textvae.load(run)


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_a_tokenizer_that_blows_a_text_up_is_refused(run, part):
    # Each of twelve makes ten of one: 10^12 characters of a word.
    bomb = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10} for _ in range(12)]
    tampered(run, lambda values: values.update({part: {"type": "Sequence", f"{part}s": bomb}}))
    with pytest.raises(TokenizerError, match="times as long"):
        textvae.load(run)


def test_a_tokenizer_nested_without_end_or_flipped_is_refused(run):
    path = run / "tokenizer" / "tokenizer.json"
    good = path.read_bytes()
    for content in (b"[" * 10**6, b'{"model":' * 10**5, good[:-9], good.replace(b"cat", b"cot", 1), b""):
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            textvae.load(run)
        config = run / "tokenizer" / "tokenizer_config.json"
        before = config.read_text()
        config.write_text(json.dumps({k: v for k, v in json.loads(before).items() if k != "sha256"}))
        if content != good.replace(b"cat", b"cot", 1):  # without a checksum that one is a tokenizer like any other
            with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
                textvae.load(run)
        config.write_text(before)


def test_a_file_too_large_for_a_tokenizer_is_refused_unread(run):
    path = run / "tokenizer" / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: no disk is used
    with pytest.raises(TokenizerError, match=r"1,099,511,627,776 bytes"):
        textvae.load(run)


def test_hostile_sizes_in_a_runs_recipe_are_refused_by_key_path(run):
    for path, value in (("model__latent_dim", 10**12), ("model__encoder__layers", 10**9)):
        shutil.copy(run / "recipe.yaml", run / "kept.yaml")
        rewrite(run, **{path: value})
        with pytest.raises(UserError, match=path.replace("__", r"\.") + ": got"):
            textvae.load(run)
        shutil.copy(run / "kept.yaml", run / "recipe.yaml")


SIZES_IN_A_GIBIBYTE = """
import resource, sys
import textvae
vae = textvae.load(sys.argv[1])  # a first time, whole: the library's own memory is asked for here
before = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")][0]
resource.setrlimit(resource.RLIMIT_AS, (before * 1024 + 2**30, before * 1024 + 2**30))
for folder in sys.argv[2:]:
    try:
        textvae.load(folder)
    except textvae.errors.CheckpointError as error:
        print(error)
"""


def test_sizes_that_the_weights_do_not_have_are_refused_before_there_is_memory_for_them(run, tmp_path):
    folders = []
    for name, path, value in (
        ("decoder", "model__decoder__hidden_dim", 16_000),
        ("encoder", "model__encoder__hidden_dim", 16_000),
        ("embedding", "model__embedding_dim", 30_000),
    ):
        shutil.copytree(run, tmp_path / name)
        rewrite(tmp_path / name, **{path: value})
        folders.append(tmp_path / name)
    shutil.copytree(run, tmp_path / "vocabulary")
    tampered(tmp_path / "vocabulary", lambda values: values["model"]["vocab"].update(cat=2**24 - 1))
    folders.append(tmp_path / "vocabulary")
    rewrite(tmp_path / "vocabulary", model__embedding_dim=64)  # four gibibytes a table
    for part in ("posterior", "prior"):
        shutil.copytree(run, tmp_path / part)
        rewrite(tmp_path / part, **{f"model__{part}": {"kind": "flow", "transforms": 200, "hidden_dim": 60_000}})
        folders.append(tmp_path / part)
    done = subprocess.run(
        [sys.executable, "-c", SIZES_IN_A_GIBIBYTE, str(run), *map(str, folders)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 6
    assert all("model.safetensors: is of another model than its recipe's" in line for line in said)


GROWING = {
    "bytes of bytes": [{"type": "ByteLevel"}] * 25,
    "between any two": [{"type": "Replace", "pattern": {"Regex": "(?=.)"}, "content": "a"}] * 28,
    "nothing": [{"type": "Replace", "pattern": {"String": ""}, "content": "a"}] * 28,
    "put before": [{"type": "Prepend", "prepend": "a" * 10_000}] * 2,
    "compatible": [{"type": "Replace", "pattern": {"String": "a"}, "content": "\ufdfa"}, {"type": "NFKC"}] * 4,
    "a new kind": [{"type": "Unheard"}] * 8,
}


@pytest.mark.parametrize("name", GROWING)
def test_a_tokenizer_whose_parts_lengthen_a_text_without_bound_is_refused(run, name):
    parts = {"type": "Sequence", "normalizers": GROWING[name]}
    tampered(run, lambda values: values.update(normalizer=parts))
    with pytest.raises(TokenizerError, match="times as long"):
        textvae.load(run)


def test_the_growth_that_is_reckoned_bounds_what_the_library_does():
    from tokenizers import normalizers

    sample = "".join(map(chr, range(1, 0xD800))) + "".join(map(chr, range(0xE000, 0x2FFFF, 7))) + "\ufdfa"
    worst = {"NFC": normalizers.NFC(), "NFD": normalizers.NFD(), "NFKC": normalizers.NFKC(), "NFKD": normalizers.NFKD(),
             "Lowercase": normalizers.Lowercase(), "ByteLevel": normalizers.ByteLevel(), "Nmt": normalizers.Nmt(),
             "BertNormalizer": normalizers.BertNormalizer(), "StripAccents": normalizers.StripAccents()}  # fmt: skip
    for name, normalizer in worst.items():
        most = max(len(normalizer.normalize_str(c).encode()) / len(c.encode()) for c in sample)
        assert most <= growth.FACTORS[name], name
    assert max(len(normalizers.NFKC().normalize_str(c).encode()) / len(c.encode()) for c in sample) > 10  # it is sharp


@pytest.mark.parametrize(
    "charsmap", ["", "AAAA", "/////////////w==", "?", None], ids=["none", "short", "long", "no base64", "null"]
)
def test_a_broken_table_of_replacements_is_refused(run, charsmap):
    tampered(run, lambda values: values.update(normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap}))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: is damaged.*precompiled_charsmap"):
        textvae.load(run)


@pytest.mark.parametrize(
    "splitter",
    [{"type": "Split", "pattern": {"Regex": "(a|a|aa)+$"}, "behavior": "Removed", "invert": False},
     {"type": "FixedLength", "length": 0}],
    ids=["backtracks", "of length 0"],
)  # fmt: skip
def test_where_the_tokenizers_library_gives_up_it_is_an_error(run, splitter):
    tampered(run, lambda values: values.update(pre_tokenizer=splitter))
    vae = textvae.load(run)
    with pytest.raises(TokenizerError, match="cannot read a text"):
        vae.encode(["a" * 40 + "c"])


def test_trusting_code_is_never_the_default():
    import inspect

    from textvae.text import tokenizers

    for function in (textvae.load, tokenizers.load):
        assert inspect.signature(function).parameters["trust_code"].default is False
    assert issubclass(UntrustedCodeError, UserError)
