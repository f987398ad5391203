"""The digits of scikit-learn, split and written to stdout as npz, by a process that ends with all it loaded.

An agent that had imported scikit-learn would share that with every worker it forks, for nothing; and inside
user-mode-linux, torch and it together need more memory mappings than a host allows a process (vm.max_map_count).
"""

from __future__ import annotations

import io
import sys

import numpy as np


def main() -> None:
    """Write ``train_images``, ``test_images``, ``train_labels`` and ``test_labels``."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    split = train_test_split(
        bunch.images.astype(np.float32), bunch.target, test_size=360, random_state=0, stratify=bunch.target
    )
    content = io.BytesIO()
    np.savez(content, *split)
    sys.stdout.buffer.write(content.getvalue())
