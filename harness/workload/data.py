"""Data sets that trials train on, held in memory as tensors: all of them.

To add one, write a loader in ``images.py`` or ``text.py``, below ``@dataset``. Real data only. Loaders look at
the folder a scenario names, then at the usual places, and download last.
"""

from harness.workload import images, text
from harness.workload.datasets import DATASETS, DECLARED, Data, Dataset, dataset
from harness.workload.images import cache, places

__all__ = ["DATASETS", "DECLARED", "Data", "Dataset", "cache", "dataset", "images", "places", "text"]
