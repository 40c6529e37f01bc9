"""SMILES as molecules: validity, uniqueness, novelty, diversity, scaffolds and properties, by rdkit."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from textvae.errors import MissingExtraError, UserError
from textvae.evaluation.samples import wasserstein_1d

RADIUS, BITS = 2, 1024  # of the Morgan fingerprints, as in MOSES
RINGS = 2  # of a scaffold at least, as in MOSES: benzene alone would stand for a quarter of a corpus
ROWS = 1024  # fingerprints compared at once with all others
PROPERTIES = ("logp", "qed", "weight")


class Scaffolds(NamedTuple):
    """Bemis-Murcko scaffolds of samples beside those of a reference; of fewer rings than two is none."""

    different: int  # among the samples
    shared: float  # share of these that the reference has, 0 to 1; 0 where there is none
    similarity: float  # cosine of the two vectors of counts, 0 to 1 (MOSES: Scaff)


class Property(NamedTuple):
    """One property of the valid samples beside that of a reference, in the property's unit."""

    mean: float
    reference_mean: float
    wasserstein: float  # Wasserstein-1 distance of the two distributions


class Molecules:
    """Texts read as SMILES, once; the figures below take it or the texts themselves.

    Args:
        texts: SMILES strings. An empty one, or one that rdkit cannot read and sanitise, is invalid.

    Raises:
        MissingExtraError: without rdkit.
        UserError: no texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        if isinstance(texts, str) or not len(texts):
            raise UserError(f"molecules are read from a list of SMILES; got {texts!r}")
        chem = _rdkit("Chem")
        self.count = len(texts)
        self.molecules: list[Any] = []  # the valid ones, in order
        with _rdkit("rdBase").BlockLogs():  # rdkit writes every parse error to standard error
            for text in texts:
                molecule = chem.MolFromSmiles(text) if text.strip() else None
                if molecule is not None:
                    self.molecules.append(molecule)
        self.canonical: list[str] = [chem.MolToSmiles(molecule) for molecule in self.molecules]

    def valid(self, what: str) -> list[Any]:
        """Returns the valid molecules; UserError where there is none."""
        if not self.molecules:
            raise UserError(f"{what}: none of the {self.count} SMILES is valid")
        return self.molecules


Smiles = Sequence[str] | Molecules


def validity(smiles: Smiles) -> float:
    """Returns the share of texts that are molecules, 0 to 1: rdkit reads and sanitises them.

    References:
        Polykovskiy 2020 (MOSES), arXiv 1811.12823.
    """
    found = _read(smiles)
    return len(found.molecules) / found.count


def uniqueness(smiles: Smiles) -> float:
    """Returns the share of different molecules among the valid ones, 0 to 1, compared as canonical SMILES.

    Falls with the number of samples: MOSES states it of 1,000 and of 10,000.

    Raises:
        UserError: no valid molecule.

    References:
        Polykovskiy 2020 (MOSES), arXiv 1811.12823.
    """
    found = _read(smiles)
    return len(set(found.canonical)) / len(found.valid("uniqueness"))


def novelty(smiles: Smiles, train: Smiles) -> float:
    """Returns the share of the different valid molecules that the training set does not have, 0 to 1.

    Raises:
        UserError: no valid molecule.

    References:
        Polykovskiy 2020 (MOSES), arXiv 1811.12823.
    """
    found = _read(smiles)
    found.valid("novelty")
    different, known = set(found.canonical), set(_read(train).canonical)
    return len(different - known) / len(different)


def internal_diversity(smiles: Smiles, *, at_most: int = 5_000) -> float:
    """Returns how unlike one another the valid molecules are, 0 to 1 - 1/N: 1 - (1/N^2) sum_ij Tanimoto(i, j).

    Morgan fingerprints of radius 2 and 1,024 bits; the pairs (i, i) count, as in MOSES (IntDiv1).

    Args:
        smiles: the samples.
        at_most: the first so many valid ones.

    Raises:
        UserError: no valid molecule, or at_most below 1.

    References:
        Polykovskiy 2020 (MOSES), arXiv 1811.12823; Benhenda 2017, arXiv 1708.08227.
    """
    if at_most < 1:
        raise UserError(f"at_most: got {at_most}; at least 1 is needed")
    prints = _fingerprints(_read(smiles).valid("internal diversity")[:at_most])
    total = sum(float(rows.sum(dtype=np.float64)) for rows in _tanimoto(prints, prints))
    return 1 - total / len(prints) ** 2


def nearest_similarity(smiles: Smiles, reference: Smiles, *, at_most: int = 5_000) -> float:
    """Returns how like a molecule of the reference the valid ones are, 0 to 1: the mean of max_j Tanimoto(i, j).

    Morgan fingerprints of radius 2 and 1,024 bits (SNN in MOSES). It grows with the reference.

    Args:
        smiles: the samples.
        reference: what they are compared with.
        at_most: the first so many valid ones of either.

    Raises:
        UserError: no valid molecule on one side, or at_most below 1.

    References:
        Polykovskiy 2020 (MOSES), arXiv 1811.12823.
    """
    if at_most < 1:
        raise UserError(f"at_most: got {at_most}; at least 1 is needed")
    ours, theirs = (_fingerprints(_read(side).valid("nearest similarity")[:at_most]) for side in (smiles, reference))
    return float(np.concatenate([rows.max(1) for rows in _tanimoto(ours, theirs)]).mean(dtype=np.float64))


def scaffolds(smiles: Smiles, reference: Smiles) -> Scaffolds:
    """Returns the samples' Bemis-Murcko scaffolds beside a reference's: how many, shared, and how alike in number.

    As in MOSES, those of two rings or more.

    Raises:
        UserError: no valid molecule on one side.

    References:
        Bemis & Murcko 1996, "The properties of known drugs. 1. Molecular frameworks"; Polykovskiy 2020 (MOSES),
        arXiv 1811.12823 (Scaff, there against test sets).
    """
    ours, theirs = (_scaffolds(_read(side).valid("scaffolds")) for side in (smiles, reference))
    dot = sum(count * theirs[scaffold] for scaffold, count in ours.items())
    norm = math.sqrt(sum(n * n for n in ours.values()) * sum(n * n for n in theirs.values()))
    shared = len(ours.keys() & theirs.keys()) / max(len(ours), 1)
    return Scaffolds(len(ours), shared, dot / norm if norm else 0.0)


def properties(smiles: Smiles, reference: Smiles) -> dict[str, Property]:
    """Returns logp (Crippen's estimate), qed (0 to 1) and weight (daltons) of the valid molecules beside a reference's.

    The Wasserstein-1 distance is biased upwards by the size of the samples: that of two parts of the reference is
    what to compare with.

    Raises:
        UserError: no valid molecule on one side.

    References:
        Wildman & Crippen 1999 (logP); Bickerton 2012 (QED); Polykovskiy 2020 (MOSES), arXiv 1811.12823.
    """
    ours, theirs = (_properties(_read(side).valid("properties")) for side in (smiles, reference))
    return {
        name: Property(float(a.mean()), float(b.mean()), wasserstein_1d(a, b))
        for name, a, b in zip(PROPERTIES, ours, theirs)
    }


def figures(
    smiles: Smiles, train: Smiles, reference: Smiles | None = None, *, at_most: int = 5_000
) -> dict[str, float | None]:
    """Returns every figure of samples beside the training set and a reference, each text read once.

    Args:
        smiles: the samples.
        train: the training set, or a part of it: novelty counts what it has.
        reference: what scaffolds, similarity and properties are held against (MOSES: a test set); `train` where absent.
        at_most: molecules compared pair by pair.

    Returns:
        validity, uniqueness, novelty, internal_diversity, nearest_similarity, scaffolds, scaffolds_shared,
        scaffold_similarity; of each property NAME_mean, NAME_reference_mean and NAME_wasserstein. All but validity are
        None where no sample is valid.

    Raises:
        UserError: no samples, or a training set or a reference without a valid molecule.
    """
    found, known = _read(smiles), _read(train)
    known.valid("the training set")
    beside = known if reference is None else _read(reference)
    beside.valid("the reference")
    names = ["uniqueness", "novelty", "internal_diversity", "nearest_similarity"]
    names += ["scaffolds", "scaffolds_shared", "scaffold_similarity"]
    columns = [f"{name}_{figure}" for name in PROPERTIES for figure in Property._fields]
    result: dict[str, float | None] = {"validity": validity(found), **dict.fromkeys((*names, *columns))}
    if found.molecules:
        diversity = internal_diversity(found, at_most=at_most)
        nearest = nearest_similarity(found, beside, at_most=at_most)
        values = (uniqueness(found), novelty(found, known), diversity, nearest, *scaffolds(found, beside))
        statistics = [value for figure in properties(found, beside).values() for value in figure]
        result |= zip((*names, *columns), (*values, *statistics))
    return result


def _tanimoto(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Similarities of fingerprints (N, BITS) and (M, BITS), some rows of (N, M) at a time."""
    sizes = theirs.sum(1)
    for begin in range(0, len(ours), ROWS):
        rows = ours[begin : begin + ROWS]
        shared = rows @ theirs.T
        union = rows.sum(1)[:, None] + sizes - shared
        # A molecule without a bit equals another such one.
        yield np.divide(shared, union, out=np.ones_like(shared), where=union > 0)


def _read(smiles: Smiles) -> Molecules:
    return smiles if isinstance(smiles, Molecules) else Molecules(smiles)


def _fingerprints(molecules: Iterable[Any]) -> NDArray[np.float32]:
    generator = _rdkit("Chem.rdFingerprintGenerator").GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    return np.stack([generator.GetFingerprintAsNumPy(molecule) for molecule in molecules]).astype(np.float32)


def _scaffolds(molecules: Iterable[Any]) -> Counter[str]:
    chem, murcko = _rdkit("Chem"), _rdkit("Chem.Scaffolds.MurckoScaffold")
    with _rdkit("rdBase").BlockLogs():
        found = [murcko.GetScaffoldForMol(molecule) for molecule in molecules]
        return Counter(chem.MolToSmiles(scaffold) for scaffold in found if scaffold.GetRingInfo().NumRings() >= RINGS)


def require() -> None:
    """Raises MissingExtraError without rdkit."""
    _rdkit("Chem")


def _properties(molecules: Iterable[Any]) -> NDArray[np.float64]:
    """(3, N): logP, QED, weight."""
    crippen, qed, descriptors = _rdkit("Chem.Crippen"), _rdkit("Chem.QED"), _rdkit("Chem.Descriptors")
    with _rdkit("rdBase").BlockLogs():
        rows = [(crippen.MolLogP(m), qed.qed(m), descriptors.MolWt(m)) for m in molecules]
    return np.asarray(rows, dtype=np.float64).T


def _rdkit(module: str) -> Any:
    try:
        return importlib.import_module(f"rdkit.{module}")
    except ImportError as error:
        raise MissingExtraError("rdkit", "chem", "to read SMILES as molecules") from error
