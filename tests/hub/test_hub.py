"""Runs go to the Hub and come back: through huggingface_hub's own client, whose requests a small hub here answers."""

import base64
import copy
import hashlib
import json
import re

import huggingface_hub
import pytest
import torch
import yaml
from conftest import sentences
from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.repocard_data import model_index_to_eval_results
from huggingface_hub.utils import set_client_factory

import textvae
from textvae import build, checkpoint
from textvae.errors import CheckpointError, UserError
from textvae.recipe import Recipe
from textvae.text import tokenizers

httpx = pytest.importorskip("httpx2", reason="huggingface_hub's HTTP client is another one here")


def made(values, tmp_path=None):
    """A run that nobody trained, in a folder."""
    recipe = Recipe.model_validate(values)
    tokenizer = tokenizers.train(recipe.tokenizer.as_dict(), sentences(200))
    torch.manual_seed(1)
    return textvae.TextVAE(build.build_model(recipe, tokenizer), tokenizer, recipe)


@pytest.fixture
def vae(values, tmp_path):
    run = made(values)
    run.folder = tmp_path / "run"
    run.folder.mkdir()
    return run


class Hub:
    """The Hub's answers: repositories as dictionaries of files; what is written is what was sent."""

    def __init__(self):
        self.repos, self.requests, self.refuse = {}, [], None

    def __call__(self, request):
        path, method = request.url.path, request.method
        self.requests.append((method, path, request.headers.get("authorization")))
        body = request.read()
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'user'}/{asked['name']}"
            self.repos.setdefault(name, {})
            return httpx.Response(200, json={"url": f"https://huggingface.co/{name}"})
        if path == "/api/validate-yaml":
            if self.refuse:
                return httpx.Response(400, json={"errors": [{"message": self.refuse}]})
            self.card = json.loads(body)["content"]
            return httpx.Response(200, json={"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(\w+/\w+)/preupload/main", path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return httpx.Response(200, json={"files": files})
        if found := re.fullmatch(r"/api/models/(\w+/\w+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "deletedFile":
                    del self.repos[found[1]][line["value"]["path"]]
                if line["key"] == "file":
                    self.repos[found[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"https://huggingface.co/{found[1]}/commit/abc"
            return httpx.Response(200, json={"commitUrl": url, "commitOid": "a" * 40})
        return self.read(path, method)

    def read(self, path, method):
        if found := re.fullmatch(r"/api/models/(\w+/\w+)(/revision/main)?", path):
            if found[1] not in self.repos:
                return httpx.Response(404, headers={"x-error-code": "RepoNotFound"}, json={"error": "not found"})
            siblings = [{"rfilename": name} for name in self.repos[found[1]]]
            return httpx.Response(200, json={"id": found[1], "sha": "a" * 40, "siblings": siblings})
        if found := re.fullmatch(r"/api/models/(\w+/\w+)/tree/\w+", path):
            rows = [
                {"type": "file", "path": name, "size": len(data), "oid": "b" * 40}
                for name, data in self.repos[found[1]].items()
            ]
            return httpx.Response(200, json=rows)
        if found := re.fullmatch(r"/(\w+/\w+)/resolve/\w+/(.+)", path):
            data = self.repos.get(found[1], {}).get(found[2])
            if data is None:
                code = "EntryNotFound" if found[1] in self.repos else "RepoNotFound"
                return httpx.Response(404, headers={"x-error-code": code, "x-repo-commit": "a" * 40})
            headers = {"etag": hashlib.sha1(data).hexdigest(), "x-repo-commit": "a" * 40}
            if method == "HEAD":
                return httpx.Response(200, headers={**headers, "content-length": str(len(data))})
            return httpx.Response(200, headers=headers, content=data)
        return httpx.Response(404, json={"error": f"no answer to {method} {path}"})


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub = Hub()
    set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(hub), follow_redirects=True))
    yield hub
    from huggingface_hub.utils._http import default_client_factory

    set_client_factory(default_client_factory)


def test_a_run_that_is_pushed_comes_back_the_same(vae, hub, tmp_path):
    assert isinstance(vae, ModelHubMixin)
    assert (
        vae.push_to_hub("user/small", token="hf_mine", private=True) == "https://huggingface.co/user/small/commit/abc"
    )
    assert ("POST", "/api/models/user/small/commit/main", "Bearer hf_mine") in hub.requests
    assert {"README.md", "recipe.yaml", "model.safetensors", "config.json", "tokenizer/tokenizer.json"} <= set(
        hub.repos["user/small"]
    )
    assert 'from_pretrained("user/small")' in hub.card
    back = textvae.TextVAE.from_pretrained("user/small", cache_dir=tmp_path / "cache", token="hf_mine")
    texts = sentences(20, seed=3)
    assert torch.equal(back.encode(texts), vae.encode(texts))
    assert back.sample(5, seed=0) == vae.sample(5, seed=0)
    downloaded = {path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
    assert not any(path.endswith(("README.md", ".png")) for path in downloaded)


def test_a_folder_saved_and_loaded_is_the_same_run_with_its_fitted_prior(vae, tmp_path):
    texts = sentences(300, seed=4)
    vae.fit_prior(texts, kind="mixture", components=2)
    assert vae.save_pretrained(tmp_path / "saved") is None
    back = textvae.TextVAE.from_pretrained(tmp_path / "saved")
    assert torch.equal(back.encode(texts), vae.encode(texts))
    assert torch.equal(back.sample_latents(9, seed=2), vae.sample_latents(9, seed=2))
    assert textvae.load(tmp_path / "saved").recipe == vae.recipe
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["latent_dim"] == 4


def test_a_run_saved_over_another_has_nothing_of_that_ones(vae, tmp_path):
    vae.fit_prior(sentences(300, seed=4), kind="gaussian")
    vae.save_pretrained(tmp_path / "saved")
    vae.fitted_prior = None
    vae.save_pretrained(tmp_path / "saved")
    back = textvae.TextVAE.from_pretrained(tmp_path / "saved")
    assert torch.equal(back.sample_latents(3, seed=0), vae.sample_latents(3, seed=0))


def test_a_run_pushed_over_another_has_nothing_of_that_ones(vae, hub, tmp_path):
    vae.fit_prior(sentences(300, seed=4), kind="gaussian")
    vae.push_to_hub("user/small")
    assert "fitted_prior.safetensors" in hub.repos["user/small"]
    hub.repos["user/small"]["mine.md"] = b"a page of one's own"
    vae.fitted_prior = None
    vae.push_to_hub("user/small")
    assert "mine.md" in hub.repos["user/small"]
    assert "fitted_prior.safetensors" not in hub.repos["user/small"]
    assert {"recipe.yaml", "tokenizer/tokenizer.json", "tokenizer.json"} <= set(hub.repos["user/small"])
    back = textvae.TextVAE.from_pretrained("user/small", cache_dir=tmp_path / "cache")
    assert torch.equal(back.sample_latents(3, seed=0), vae.sample_latents(3, seed=0))


def test_a_card_is_written_again_unless_somebody_has_edited_it(vae, tmp_path):
    place = tmp_path / "saved"
    vae.fit_prior(sentences(300, seed=4), kind="gaussian")
    vae.save_pretrained(place)
    assert "gaussian that was fitted" in (place / "README.md").read_text()
    vae.fitted_prior = None
    vae.save_pretrained(place)
    assert "gaussian that was fitted" not in (place / "README.md").read_text()
    edited = (place / "README.md").read_text().replace("## ", "## My ", 1)
    (place / "README.md").write_text(edited)
    vae.save_pretrained(place)
    assert (place / "README.md").read_text() == edited


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_a_fitted_prior_is_named_where_samples_come_from_it(vae, kind):
    assert "Drawn from the prior with seed 0" in vae.generate_model_card().text
    vae.fit_prior(sentences(300, seed=4), kind=kind, components=2)
    assert f"Drawn from the {kind} that was fitted" in vae.generate_model_card().text
    settings = vae.evaluate("test", samples=4)["settings"]
    assert (settings["prior"], settings["samples_prior"]) == ("standard_normal", f"fitted: {kind}")


def test_an_unknown_option_is_refused(vae, tmp_path):
    vae.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match=r"no option 'trust_cod'.*trust_code"):
        textvae.TextVAE.from_pretrained(tmp_path / "saved", trust_cod=True)


def test_what_cannot_be_had_or_pushed_is_said_in_one_line(vae, hub, tmp_path):
    with pytest.raises(UserError, match=r"user/none: cannot be had from the Hub \(.*(404|not find)"):
        textvae.TextVAE.from_pretrained("user/none", cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="no name of a repository"):
        textvae.TextVAE.from_pretrained("no name/at all")
    with pytest.raises(CheckpointError, match="holds no run"):
        textvae.TextVAE.from_pretrained(tmp_path)
    hub.refuse = '"license" must be one of'
    with pytest.raises(UserError, match=r"user/small: cannot be pushed .*license"):
        vae.push_to_hub("user/small", token="hf_mine")


def test_without_a_way_to_the_hub_the_message_says_so(vae, tmp_path):
    with pytest.raises(UserError, match="cannot be had from the Hub"):
        textvae.TextVAE.from_pretrained("user/none", cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match=r"cannot be pushed .*offline"):
        vae.push_to_hub("user/small", token="hf_mine")


def test_code_that_a_downloaded_recipe_names_is_not_imported(vae, tmp_path):
    vae.save_pretrained(tmp_path / "saved")
    recipe = tmp_path / "saved" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("kind: gaussian", "kind: os.system"))
    with pytest.raises(UserError, match="trust_code"):
        textvae.TextVAE.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("source", ["files", "folder", "hub"])
def test_files_that_a_strangers_recipe_names_on_this_machine_are_not_read(vae, values, tmp_path, source):
    secret = tmp_path / "secret.txt"
    secret.write_text("the password is sesame .\n" * 30)
    named = {"files": {part: str(secret) for part in ("train", "validation", "test")}, "folder": str(tmp_path)}
    named["hub"] = {"name": str(tmp_path)}  # which datasets takes for a folder
    data = {source: named[source], **({"format": "text"} if source == "files" else {})}
    vae.recipe = Recipe.model_validate(values | {"data": data})
    vae.save_pretrained(tmp_path / "saved")
    back = textvae.TextVAE.from_pretrained(tmp_path / "saved")
    for ask in (lambda: back.evaluate("test"), lambda: back.corpus_texts("test", 3)):
        with pytest.raises(UserError, match=f"names '{tmp_path}") as caught:
            ask()
        assert "sesame" not in str(caught.value)
    assert back.score(["the dog sees the barn ."])[0]["tokens"] == 7
    if source == "files":  # a run of one's own, and a corpus that is named anew
        assert textvae.load(tmp_path / "saved").corpus_texts("test", 1) == ["the password is sesame ."]
        assert back.evaluate("test", recipe=vae.recipe)["sentences"] == 30


EVALUATION = {
    "nll_elbo": 13.5,
    "ppl_elbo": 4.25,
    "kl": 5.0,
    "mutual_information": 0.02,
    "active_units": 3,
    "bleu": None,
    "nll_iw": float("nan"),
}

# The schema of model-index, as the Hub's documentation of model cards gives it.
MODEL_INDEX = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "results"],
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "results": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["task", "dataset", "metrics"],
                    "properties": {
                        "task": {"type": "object", "required": ["type"]},
                        "dataset": {"type": "object", "required": ["type", "name"]},
                        "metrics": {
                            "type": "array",
                            "items": {"type": "object", "required": ["type", "value"]},
                        },
                    },
                },
            },
        },
    },
}


def test_the_card_passes_the_hubs_metadata_check_and_gives_the_saved_figures(vae, tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    (vae.folder / "evaluation-test.json").write_text(json.dumps(EVALUATION))
    (vae.folder / "curves.png").write_bytes(b"picture")
    (vae.folder / checkpoint.METRICS).write_text('{"part": "validation", "nll_elbo": 99.0}\n')
    told = {"license": "cc-by-4.0", "language": ["en", "de"]}
    vae.save_pretrained(tmp_path / "saved", model_card_kwargs=told)
    text = (tmp_path / "saved" / "README.md").read_text()
    card = ModelCard.load(tmp_path / "saved" / "README.md")  # validates, and raises where it cannot read
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["language"] == ["en", "de"]
    assert metadata["library_name"] == "textvae"
    jsonschema.validate(metadata["model-index"], MODEL_INDEX)
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == card.data.model_name == vae.recipe.name
    values = {result.metric_name.partition(",")[0]: result.metric_value for result in results}
    assert values == {
        "-ELBO": 13.5,
        "perplexity a token": 4.25,
        "KL to the prior": 5.0,
        "mutual information of text and latent": 0.02,
        "active units": 3,
    }
    assert {result.metric_type for result in results} >= {"perplexity", "nll_elbo"}
    assert {result.dataset_split for result in results} == {"test"}
    body = text.split("---", 2)[2]
    for heading in ("Data", "Figures", "Training", "Samples", "Recipe", "Licence", "Limits"):
        assert f"## {heading}\n" in body
    assert "| -ELBO, nats a sentence | 13.5 |" in body
    assert "curves.png" in body
    assert "collapsed" in body
    assert (tmp_path / "saved" / "curves.png").read_bytes() == b"picture"
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, re.S)[1])["model"]["latent_dim"] == 4


def test_figures_come_from_the_training_where_no_evaluation_was_saved(vae):
    (vae.folder / checkpoint.METRICS).write_text(
        '{"step": 1, "part": "train", "nll_elbo": 7}\n'
        '{"step": 1, "part": "validation", "nll_elbo": 9.0}\n'
        '{"step": 2, "part": "validation", "nll_elbo": 8.0}\n'
    )
    card = vae.generate_model_card()
    assert [result.metric_value for result in card.data.eval_results] == [8.0]
    assert "validation part, which also chose the weights" in card.text


def test_a_card_without_figures_says_so_and_tells_no_place_on_the_disk(vae, values):
    card = vae.generate_model_card()
    assert card.data.eval_results is None
    assert "None were kept" in card.text
    data = card.text.split("## Data")[1].split("##")[0]
    assert "train.txt" in data
    assert "/" not in data
    assert card.data.license == "unknown"
    assert "Not stated" in card.text


def test_a_data_set_of_the_hub_is_named_in_the_metadata(values):
    values = copy.deepcopy(values)
    values["data"] = {"hub": {"name": "some/corpus", "config": "small"}}
    card = made(values).generate_model_card()
    assert card.data.datasets == ["some/corpus"]


def test_a_name_or_a_sample_that_looks_like_markup_breaks_nothing(values, vae):
    values = copy.deepcopy(values)
    values["name"] = "a ``` b\n---\nlicense: mit"
    run = made(values)
    run.sample = lambda n, seed: ["```` {{ 7 * 7 }}"] * n
    card = run.generate_model_card()
    assert ModelCard(str(card)).data.license == "unknown"
    assert "`````text\n```` {{ 7 * 7 }}" in card.text


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"license": "My own!"}, "license: got 'My own!'"),
        ({"language": "English"}, "language: got 'English'"),
        ({"licence": "mit"}, "licence: is no argument of a model card; .*Did you mean 'license'"),
    ],
)
def test_metadata_that_the_hub_would_refuse_is_refused_here(vae, told, message):
    with pytest.raises(UserError, match=message):
        vae.generate_model_card(**told)
