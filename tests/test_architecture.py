"""The house stands as DESIGN says: imports go one way, importing does nothing, files stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import textvae

PACKAGE = ROOT / "textvae"

# A module may import from its own layer's family and from any layer below; families of one layer do not meet.
LAYERS = [
    {"errors", "types", "registry", "recipe_yaml", "seeds", "durations"},
    {"recipe", "distributed", "_version", "written"},
    {"recipe_file", "recipe_schema", "schedules", "control", "optimizers", "averages"},
    {"text", "latent", "nets", "objective", "importance"},
    {"model", "combinations"},
    {"build", "parts"},
    {"checkpoint"},
    {"folders"},
    {"generation", "plots"},
    {"evaluation"},
    {"hub", "ecosystem", "toolbox"},
    {"api"},
    {"training", "explorer", "sklearn", "export", "launch"},
    {"bench"},
    {"cli", "cli_evaluate", "cli_explore", "cli_export", "cli_parser", "cli_toolbox"},
    {"__main__"},
]
LEVEL = {family: level for level, layer in enumerate(LAYERS) for family in layer}


def family_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> set[str]:
    """The textvae modules that a file imports when it is imported (not within functions)."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("textvae"):
            whole = node.module == "textvae"
            found |= {f"textvae.{alias.name}" for alias in node.names} if whole else {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("textvae")}
    return found


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in LEVEL, f"{own} has no place in the design yet"
    for module in imports_of(path):
        other = family_of(module)
        below = LEVEL[other] < LEVEL[own]
        # The first layers are single files that build on each other.
        beside = LEVEL[other] == LEVEL[own] and (LEVEL[own] < 3 or own.startswith("cli"))
        assert other == own or below or beside, f"{path.name} ({own}) imports {module}"


def test_text_never_sees_latents_and_latents_never_see_text():
    for one, other in (("text", "latent"), ("latent", "text")):
        for path in (PACKAGE / one).glob("*.py"):
            assert not any(family_of(module) == other for module in imports_of(path)), path.name


def test_public_names_are_there_and_importing_loads_no_torch():
    for name in textvae.__all__:
        assert getattr(textvae, name) is not None
    code = "import sys, textvae, textvae.recipe_file\nassert not {'torch', 'datasets', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 370


def test_nothing_names_a_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    words = ["/" + "work/", "/" + "root/", "pypi" + ".org", "/" + "tmp/runs"]
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".txt") and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not [word for word in words if word in text], name
