"""The digits of scikit-learn, read from its file and split as it splits them, without importing it.

That would take seconds in each agent, which would share with every worker it forks what no worker needs; and inside
user-mode-linux, torch and it together need more memory mappings than a host allows a process (vm.max_map_count).
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError

FILE = Path("datasets", "data", "digits.csv.gz")
"""In scikit-learn's folder: a row a digit, of 64 pixels and the label."""

TEST_SIZE = 360

Array = NDArray[Any]


def split_digits() -> tuple[Array, Array, Array, Array]:
    """Images to train on and to test on, and the labels of both: of each digit the same share."""
    with gzip.open(_folder() / FILE, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    training, test = _stratified(labels)
    return images[training], images[test], labels[training], labels[test]


def _folder() -> Path:
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("train.dataset: found 'digits', which come with scikit-learn; pip install scikit-learn")
    return Path(spec.submodule_search_locations[0])


def _stratified(labels: Array) -> tuple[Array, Array]:
    """Places of what is trained on, and of the rest: ``train_test_split(..., random_state=0, stratify=labels)``."""
    dice, counts = np.random.RandomState(0), np.bincount(labels)
    trained = _drawn(counts, len(labels) - TEST_SIZE, dice)
    tested = _drawn(counts - trained, TEST_SIZE, dice)
    training, test = [], []
    for digit, (more, rest) in enumerate(zip(trained, tested, strict=True)):
        places = np.flatnonzero(labels == digit)[dice.permutation(counts[digit])]
        training.append(places[:more])
        test.append(places[more : more + rest])
    return dice.permutation(np.concatenate(training)), dice.permutation(np.concatenate(test))


def _drawn(counts: Array, wanted: int, dice: np.random.RandomState) -> Array:
    """How many of each class, in proportion; what is missing after rounding goes to the greatest remainders."""
    exact = counts / counts.sum() * wanted
    drawn: Array = np.floor(exact)
    missing, remainders = int(wanted - drawn.sum()), exact - drawn
    for remainder in np.unique(remainders)[::-1]:
        if not missing:
            break
        alike = np.flatnonzero(remainders == remainder)
        chosen = dice.choice(alike, size=min(len(alike), missing), replace=False)
        drawn[chosen] += 1
        missing -= len(chosen)
    return drawn.astype(np.int64)
