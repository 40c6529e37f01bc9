"""Molecules counted by hand, statistics by scipy, and rdkit's own pairwise similarities."""

from __future__ import annotations

import gzip
import itertools

import pytest
import scipy.stats

from textvae.errors import MissingExtraError, UserError
from textvae.evaluation import molecules

pytest.importorskip("rdkit", reason="rdkit is not installed (extra chem)")

# Ethanol twice in two spellings, benzene, toluene, pyridine; then no molecule: syntax, valence, ring, nothing.
SMILES = ["CCO", "OCC", "c1ccccc1", "Cc1ccccc1", "c1ccncc1", "C(C", "C(C)(C)(C)(C)C", "c1ccccc", "", "  "]
TRAIN = ["c1ccccc1C", "CCC", "CCc1ccccc1", "C1CCCCC1", "xx"]


def test_validity_uniqueness_and_novelty_by_hand():
    assert molecules.validity(SMILES) == pytest.approx(5 / 10)
    assert molecules.uniqueness(SMILES) == pytest.approx(4 / 5)
    # Of ethanol, benzene, toluene, pyridine toluene is known, in another spelling.
    assert molecules.novelty(SMILES, TRAIN) == pytest.approx(3 / 4)


# Naphthalene, then with a methyl group; quinoline; biphenyl.
RINGS = ["c1ccc2ccccc2c1", "Cc1ccc2ccccc2c1", "c1ccc2ncccc2c1", "c1ccccc1-c1ccccc1"]


def test_scaffolds_by_hand():
    # Naphthalene twice and quinoline once; there naphthalene twice and biphenyl once; of one ring and of none is none.
    found = molecules.scaffolds([*SMILES, *RINGS[:3]], [*TRAIN, *RINGS[:2], RINGS[3]])
    assert found == (2, pytest.approx(1 / 2), pytest.approx(4 / (5**0.5 * 5**0.5)))
    assert molecules.scaffolds(SMILES, TRAIN) == (0, 0, 0)


def test_internal_diversity_is_that_of_rdkits_own_pairs(monkeypatch):
    from rdkit import Chem, DataStructs
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    valid = SMILES[:5]
    prints = [generator.GetFingerprint(Chem.MolFromSmiles(text)) for text in valid]
    pairs = [DataStructs.TanimotoSimilarity(a, b) for a, b in itertools.product(prints, repeat=2)]
    monkeypatch.setattr(molecules, "ROWS", 2)
    assert molecules.internal_diversity(SMILES) == pytest.approx(1 - sum(pairs) / 25, abs=1e-6)
    assert molecules.internal_diversity(SMILES, at_most=2) == pytest.approx(0, abs=1e-6)


def test_the_nearest_of_a_reference_is_that_of_rdkits_own_similarities(monkeypatch):
    from rdkit import Chem, DataStructs
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    ours, theirs = (
        [generator.GetFingerprint(Chem.MolFromSmiles(text)) for text in side] for side in (SMILES[:5], TRAIN[:4])
    )
    nearest = [max(DataStructs.BulkTanimotoSimilarity(one, theirs)) for one in ours]
    monkeypatch.setattr(molecules, "ROWS", 2)
    assert nearest[3] == 1  # toluene, in two spellings
    assert molecules.nearest_similarity(SMILES, TRAIN) == pytest.approx(sum(nearest) / 5, abs=1e-6)
    assert molecules.nearest_similarity(SMILES, SMILES) == pytest.approx(1)
    assert molecules.nearest_similarity(SMILES, TRAIN, at_most=1) < 0.5


def test_properties_of_ethanol_and_distances_by_scipy():
    found = molecules.properties(["CCO", "??"], ["CCO", "OCC"])
    assert found["weight"].mean == pytest.approx(46.07, abs=0.01)  # 2 x 12.011 + 6 x 1.008 + 15.999
    assert found["logp"].mean == pytest.approx(-0.0014, abs=1e-4)  # Wildman & Crippen's estimate
    assert 0 < found["qed"].mean < 1
    assert all(figure.wasserstein < 1e-9 for figure in found.values())
    found = molecules.properties(SMILES, TRAIN)
    weights = [46.07, 46.07, 78.11, 92.14, 79.10], [92.14, 44.10, 106.17, 84.16]
    assert found["weight"].wasserstein == pytest.approx(scipy.stats.wasserstein_distance(*weights), abs=0.02)
    assert found["weight"].reference_mean == pytest.approx(sum(weights[1]) / 4, abs=0.02)


def test_all_figures_are_those_of_the_single_functions_and_none_without_a_molecule():
    found = molecules.figures(SMILES, TRAIN)
    assert found["uniqueness"] == molecules.uniqueness(SMILES)
    assert found["novelty"] == molecules.novelty(SMILES, TRAIN)
    assert found["internal_diversity"] == molecules.internal_diversity(SMILES)
    assert (found["scaffolds"], found["scaffolds_shared"], found["scaffold_similarity"]) == molecules.scaffolds(
        SMILES, TRAIN
    )
    assert found["qed_wasserstein"] == molecules.properties(SMILES, TRAIN)["qed"].wasserstein
    assert found["nearest_similarity"] == molecules.nearest_similarity(SMILES, TRAIN)
    # Beside a test set: novelty is of the training set as before, all that is held against others of the test set.
    beside = molecules.figures([*SMILES, *RINGS], TRAIN, [*SMILES, *RINGS])
    assert [beside[key] for key in ("scaffolds_shared", "scaffold_similarity", "nearest_similarity")] == pytest.approx(
        [1, 1, 1]
    )
    assert beside["novelty"] == molecules.novelty([*SMILES, *RINGS], TRAIN)
    assert beside["weight_wasserstein"] == 0
    none = molecules.figures(["((", ""], TRAIN)
    assert none.keys() == found.keys()
    assert none.pop("validity") == 0
    assert set(none.values()) == {None}


def test_rdkit_says_nothing_while_it_reads_and_speaks_again_afterwards(capfd):
    from rdkit import Chem

    molecules.figures(SMILES, TRAIN)
    assert capfd.readouterr().err == ""
    Chem.MolFromSmiles("C(C")
    assert "C(C" in capfd.readouterr().err


def test_real_molecules_are_valid_and_near_one_another(shared):
    with gzip.open(shared("smiles") / "test.txt.gz", "rt") as file:
        texts = [line.strip() for line in itertools.islice(file, 200)]
    found = molecules.figures(texts[:100], texts[100:])
    assert found["validity"] == found["uniqueness"] == 1
    assert 0.8 < found["internal_diversity"] < 0.9  # MOSES: .857 of its test set
    assert found["qed_wasserstein"] < 0.05


def test_what_has_no_figure_is_refused():
    invalid = ["((", ""]
    for call in (
        lambda: molecules.uniqueness(invalid),
        lambda: molecules.novelty(invalid, TRAIN),
        lambda: molecules.internal_diversity(invalid),
        lambda: molecules.scaffolds(TRAIN, invalid),
        lambda: molecules.properties(invalid, TRAIN),
        lambda: molecules.figures(SMILES, invalid),
        lambda: molecules.figures(SMILES, TRAIN, invalid),
        lambda: molecules.nearest_similarity(SMILES, invalid),
    ):
        with pytest.raises(UserError, match="none of the 2 SMILES is valid"):
            call()
    with pytest.raises(UserError, match="list of SMILES; got"):
        molecules.validity([])
    with pytest.raises(UserError, match="at_most: got 0"):
        molecules.internal_diversity(SMILES, at_most=0)
    with pytest.raises(UserError, match="at_most: got 0"):
        molecules.nearest_similarity(SMILES, TRAIN, at_most=0)


def test_without_rdkit_the_extra_is_named(monkeypatch):
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(molecules.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'textvae\[chem\]'"):
        molecules.validity(["CCO"])
