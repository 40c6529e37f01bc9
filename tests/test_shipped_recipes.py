"""What is shipped is run: every recipe is read, built and stepped on a small corpus, and so are README's promises."""

import re

import pytest
from conftest import ROOT, sentences

import textvae
from textvae import recipe_file
from textvae.training import train

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_takes_two_steps_and_gives_sentences(name, tmp_path):
    files = {}
    for seed, (part, count) in enumerate({"train": 300, "validation": 40, "test": 30}.items()):
        path = tmp_path / f"{part}.txt"
        path.write_text("".join(line + "\n" for line in sentences(count, seed)), encoding="utf-8")
        files[part] = path
    listed = ", ".join(f"{part}: {path}" for part, path in files.items())
    overrides = ["training.max_steps=2", "training.threads=1", "generation.max_length=5"]
    text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    if "start_from:" in text:  # another recipe's run
        overrides.append("training.start_from=null")
    if "aggressive:" in text:
        overrides.append("training.aggressive.steps=2")
    local = [f"data.files={{{listed}}}", "data.column=text", *overrides]
    recipe = recipe_file.load(ROOT / "recipes" / f"{name}.yaml", local)
    run = train(recipe, tmp_path / "run", quiet=True)
    vae = textvae.load(run)
    assert len(vae.sample(2, seed=0)) == 2
    if vae.latent_dim:
        assert len(vae.interpolate("the cat sees the dog", "the bird", 3)) == 3


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_what_whose_how_long_and_what_to_expect(name):
    text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    head = text[: re.search(r"^[^#]", text, re.M).start()]
    for needed in (f"textvae train recipes/{name}.yaml", "Whose setup:", "How long:", "Expect:"):
        assert needed in head, needed


def test_the_table_of_results_has_every_recipe():
    table = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    for name in RECIPES:
        assert f"`{name}`" in table, name


def test_readme_shows_commands_and_files_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    from textvae.cli_parser import parser

    known = set(parser("0")._subparsers._group_actions[0].choices)
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", readme, re.S))
    for command in re.findall(r"(?:^|[\s/])textvae ([a-z-]+)\b", blocks):
        assert command in known, command
    for path in re.findall(r"recipes/[a-z0-9-]+\.yaml", readme):
        assert (ROOT / path).exists(), path
    tree = re.search(r"```text\n(textvae/.*?)```", readme, re.S)
    assert tree is not None
    for line in tree[1].splitlines()[1:]:
        name = line.split()[0]
        found = list((ROOT / "textvae").rglob(name.rstrip("/"))) or list(ROOT.glob(name.rstrip("/")))
        assert found, name
