"""Data sets that trials train on, held in memory as tensors. To add one, write a loader and put ``@dataset`` above it.

Real data only. Loaders look at the folder a scenario names, then at the usual places, and download last.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness import programs
from harness.errors import UsageError
from harness.plugins import Catalogue, Plugin


@dataclass(frozen=True)
class Data:
    """What a model is given, and what it should say.

    Images: inputs (N, C, H, W) float32, roughly of zero mean and unit deviation; targets (N,) int64, their classes.
    Text: inputs (N, T) int64, T tokens in a row; targets (N, T) int64, to each token the next one.
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    def on(self, device: torch.device) -> Data:
        """The same in a device's memory."""
        return Data(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Dataset:
    """A data set by name: how to load it from an optional folder, and how many samples it has."""

    name: str
    summary: str
    load: Callable[[Path | None], Data]
    train_size: int
    test_size: int
    input_shape: tuple[int, ...]
    classes: int
    look: Look | None = None
    """Of a data set that is whatever lies in a folder: how many samples are there to train on and to test, and how many
    classes. Its sizes above are 0."""

    def in_folder(self, data_dir: str | None) -> Dataset:
        """The same as it is in a folder.

        Raises:
            UsageError: it needs a folder, and there is none of its layout.
        """
        if self.look is None:
            return self
        train_size, test_size, classes = self.look(Path(data_dir) if data_dir else None)
        return replace(self, train_size=train_size, test_size=test_size, classes=classes)

    @property
    def is_text(self) -> bool:
        """Whether a sample is a row of tokens, each with a next one to be said; else it is an image with a class."""
        return len(self.input_shape) == 1


DECLARED = "__pacbench__"
"""The attribute of a function that holds what a decorator has declared of it."""

Look = Callable[[Path | None], tuple[int, int, int]]
Loader = Callable[[Path | None], Data]


def dataset(
    name: str = "",
    *,
    train_size: int = 0,
    test_size: int = 0,
    input_shape: tuple[int, ...],
    classes: int,
    look: Look | None = None,
) -> Callable[[Loader], Loader]:
    """Declare what the decorated loader loads; the first line of its docstring describes it in lists.

    Here it is entered under ``name``. In a plug-in no name is needed: its file or its package names it.
    """

    def enter(load: Loader) -> Loader:
        summary = (load.__doc__ or "").partition("\n")[0]
        declared = Dataset(name, summary, load, train_size, test_size, input_shape, classes, look)
        if load.__module__ == __name__:
            DATASETS[name] = declared
        setattr(load, DECLARED, declared)
        return load

    return enter


def _of_plugin(plugin: Plugin) -> Dataset:
    """The data set that a plug-in declares; what its loader raises names its file and line."""
    load: Any = plugin.get()
    declared = vars(load).get(DECLARED) if hasattr(load, "__dict__") else None
    if not isinstance(declared, Dataset):
        sizes = "train_size=..., test_size=..., input_shape=..., classes=..."
        raise plugin.error(f"{plugin.attribute} has no @dataset({sizes}) above it")
    plugin.check_call(load, "folder")
    plugin.check_declared_shape(declared.input_shape, declared.classes)

    def load_and_check(folder: Path | None) -> Data:
        with plugin.blamed():
            found = load(folder)
        if complaint := _complaint(found, declared):
            raise plugin.error(f"{plugin.attribute} gives {complaint}")
        return found  # type: ignore[no-any-return]

    return replace(declared, name=plugin.name, load=load_and_check)


def _complaint(found: object, declared: Dataset) -> str | None:
    """What is wrong with loaded data, if anything is: found and allowed."""
    if not isinstance(found, Data):
        return f"{type(found).__name__}; allowed: a harness.workload.data.Data"
    input_type = torch.int64 if declared.is_text else torch.float32
    for part, size in (("train", declared.train_size), ("test", declared.test_size)):
        target_shape = (size, *(declared.input_shape if declared.is_text else ()))
        for field, shape, dtype in (
            (f"{part}_inputs", (size, *declared.input_shape), input_type),
            (f"{part}_targets", target_shape, torch.int64),
        ):
            given = getattr(found, field)
            kind = (tuple(given.shape), given.dtype) if isinstance(given, Tensor) else type(given).__name__
            if kind != (shape, dtype):
                return f"{field} as {kind}; allowed: {(shape, dtype)}, as it declares"
        targets = getattr(found, f"{part}_targets")
        if not 0 <= int(targets.min()) <= int(targets.max()) < declared.classes:
            return f"{part}_targets from {targets.min()} to {targets.max()}; allowed: 0 to {declared.classes - 1}"
    return None


DATASETS: Catalogue[Dataset] = Catalogue("dataset", _of_plugin)


@dataset("digits", train_size=1437, test_size=360, input_shape=(1, 8, 8), classes=10)
def digits(folder: Path | None) -> Data:
    """Handwritten digits, 8x8 grey (UCI ML, bundled with scikit-learn): 1437 to train on, 360 to test."""
    loaded = programs.run(programs.python("harness.workload.digits"), capture_output=True, check=True)
    split = np.load(io.BytesIO(loaded.stdout))
    return _as_data(*(split[name] for name in split.files))


FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist",)
"""Where Linux distributions put Fashion-MNIST (Debian: the package dataset-fashion-mnist)."""


@dataset("fashion-mnist", train_size=60000, test_size=10000, input_shape=(1, 28, 28), classes=10)
def fashion_mnist(folder: Path | None) -> Data:
    """Fashion-MNIST, 28x28 grey (Xiao et al., 2017): 60000 to train on, 10000 to test."""
    candidates = places(folder)
    found = next((place for place in candidates if (place / "train-images-idx3-ubyte.gz").is_file()), None)
    if found is None and folder is not None:
        raise UsageError.at(
            "scenario", "train.data_dir", str(folder), "a folder with train-images-idx3-ubyte.gz and its three siblings"
        )
    if found is None:
        found = _download_fashion_mnist()
    return _as_data(
        _read_idx(found / "train-images-idx3-ubyte.gz"),
        _read_idx(found / "t10k-images-idx3-ubyte.gz"),
        _read_idx(found / "train-labels-idx1-ubyte.gz"),
        _read_idx(found / "t10k-labels-idx1-ubyte.gz"),
    )


CIFAR_PADDING = (2, 2, 2, 2)
"""It makes 32x32 of 28x28."""


@dataset("fashion-mnist-rgb", train_size=10000, test_size=500, input_shape=(3, 32, 32), classes=10)
def fashion_mnist_rgb(folder: Path | None) -> Data:
    """Fashion-MNIST as models for CIFAR take it, 3x32x32, padded, grey thrice: 10000 to train on, 500 to test."""
    whole = fashion_mnist(folder)
    train_size, test_size = DATASETS["fashion-mnist-rgb"].train_size, DATASETS["fashion-mnist-rgb"].test_size
    train, test = (
        functional.pad(images, CIFAR_PADDING, value=float(images.min())).expand(-1, 3, -1, -1)
        for images in (whole.train_inputs[:train_size], whole.test_inputs[:test_size])
    )
    return Data(train, whole.train_targets[:train_size], test, whole.test_targets[:test_size])


TEXT_LENGTH = 64
ROW_BYTES = TEXT_LENGTH + 1
TEST_FILE_EVERY = 10
"""Whole files are kept for the test, so that it asks of code that was never seen."""


@dataset("python-source", train_size=32768, test_size=512, input_shape=(TEXT_LENGTH,), classes=256)
def python_source(folder: Path | None) -> Data:
    """Bytes of the Python standard library's modules, 64 in a row: 32768 rows to train on, 512 of other files to test.

    It is the library of the Python that runs, or all ``.py`` files right in the scenario's folder. Another version of
    Python has a slightly other text; trials record the version.
    """
    where = folder or Path(sysconfig.get_path("stdlib"))
    sources = sorted(where.glob("*.py"))
    known = DATASETS["python-source"]
    test = _rows(sources[::TEST_FILE_EVERY], known.test_size, where)
    train = _rows([each for place, each in enumerate(sources) if place % TEST_FILE_EVERY], known.train_size, where)
    return Data(train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:])


def _rows(sources: Sequence[Path], count: int, where: Path) -> Tensor:
    """Rows of text (count, TEXT_LENGTH + 1) int64, evenly spread over these files; the last byte is only a target."""
    text = b"".join(path.read_bytes() for path in sources)
    length = ROW_BYTES
    found = len(text) // length
    if found < count:
        allowed = f"a folder with at least {count * length} bytes of Python in each part of its .py files"
        raise UsageError.at("scenario", "train.data_dir", str(where), f"{allowed}; {len(text)} are there")
    rows = torch.from_numpy(np.frombuffer(text, np.uint8, found * length).reshape(found, length).astype(np.int64))
    return rows[torch.linspace(0, found - 1, count).long()]


def _text_files(folder: Path | None) -> tuple[list[Path], list[Path]]:
    """A folder's text files, below it too, in their order: those to train on, and every tenth to test."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder else []
    train, test = [path for place, path in enumerate(found) if place % TEST_FILE_EVERY], found[::TEST_FILE_EVERY]
    if not all(sum(path.stat().st_size for path in part) >= ROW_BYTES for part in (train, test)):
        allowed = f"a folder with at least two files of text of {ROW_BYTES} bytes or more"
        raise UsageError.at("scenario", "train.data_dir", folder and str(folder), allowed)
    return train, test


def _look_at_text(folder: Path | None) -> tuple[int, int, int]:
    """Rows to train on and to test, and what a byte may be."""
    train, test = (sum(path.stat().st_size for path in part) // ROW_BYTES for part in _text_files(folder))
    return train, test, 256


@dataset("text-folder", input_shape=(TEXT_LENGTH,), classes=256, look=_look_at_text)
def text_folder(folder: Path | None) -> Data:
    """Bytes of all files in the folder train.data_dir, 64 in a row; every tenth file is kept for the test."""
    train_size, test_size, _ = _look_at_text(folder)
    train_files, test_files = _text_files(folder)
    assert folder
    train, test = _rows(train_files, train_size, folder), _rows(test_files, test_size, folder)
    return Data(train[:, :-1], train[:, 1:], test[:, :-1], test[:, 1:])


class _OnlyArrays(pickle.Unpickler):
    """Reads arrays and plain containers: a pickle may else run whatever it names."""

    def find_class(self, module: str, name: str) -> Any:
        """See ``pickle.Unpickler.find_class``."""
        if (module.split(".")[0], name) in {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy", "_reconstruct")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


CIFAR_10 = ("cifar-10-batches-py", [f"data_batch_{number}" for number in range(1, 6)], ["test_batch"], "labels")
CIFAR_100 = ("cifar-100-python", ["train"], ["test"], "fine_labels")


@dataset("cifar-10", train_size=50000, test_size=10000, input_shape=(3, 32, 32), classes=10)
def cifar_10(folder: Path | None) -> Data:
    """CIFAR-10, 3x32x32 (Krizhevsky, 2009), in torchvision's format: 50000 to train on, 10000 to test."""
    return _cifar("CIFAR10", folder, *CIFAR_10)


@dataset("cifar-100", train_size=50000, test_size=10000, input_shape=(3, 32, 32), classes=100)
def cifar_100(folder: Path | None) -> Data:
    """CIFAR-100, 3x32x32 (Krizhevsky, 2009), fine labels, in torchvision's format: 50000 to train on, 10000 to test."""
    return _cifar("CIFAR100", folder, *CIFAR_100)


def _cifar(kind: str, folder: Path | None, name: str, train: list[str], test: list[str], labels: str) -> Data:
    """Files of ``python version`` of CIFAR (cs.toronto.edu/~kriz/cifar.html), as torchvision keeps them."""
    where = next((place / name for place in [folder or cache()] if (place / name).is_dir()), None)
    if where is None and folder is not None:
        allowed = f"a folder with {name}/, as torchvision keeps it"
        raise UsageError.at("scenario", "train.data_dir", str(folder), allowed)
    where = where or _download_cifar(kind) / name
    batches = [[_read_cifar(where / file, labels) for file in part] for part in (train, test)]
    images = [np.concatenate([pixels for pixels, _ in part]).reshape(-1, 3, 32, 32) for part in batches]
    targets = [np.concatenate([classes for _, classes in part]) for part in batches]
    return Data(*_by_channel(*images, *targets))


def _read_cifar(path: Path, labels: str) -> tuple[np.ndarray, np.ndarray]:
    """The images (N, 3072) uint8 and classes (N,) int64 of one file."""
    try:
        with path.open("rb") as file:
            content = _OnlyArrays(file, encoding="latin1").load()
        pixels, classes = np.asarray(content["data"], np.uint8), np.asarray(content[labels], np.int64)
        return pixels.reshape(len(classes), 3072), classes
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path}: not a readable CIFAR file: {reason}") from None


def _download_cifar(kind: str) -> Path:
    import torchvision

    try:
        getattr(torchvision.datasets, kind)(cache(), download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"scenario: train.dataset: {kind} is not on this machine and its download failed ({reason}); "
            "set train.data_dir to a folder that holds torchvision's"
        ) from None
    return cache()


def _by_channel(
    train: np.ndarray, test: np.ndarray, train_targets: np.ndarray, test_targets: np.ndarray
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both parts as ``Data`` has them, standardised by each channel's mean and deviation in the training part."""
    mean = train.mean((0, 2, 3), dtype=np.float64, keepdims=True).astype(np.float32)
    deviation = np.maximum(train.std((0, 2, 3), dtype=np.float64, keepdims=True).astype(np.float32), 1e-6)
    inputs = [torch.from_numpy((images.astype(np.float32) - mean) / deviation) for images in (train, test)]
    return inputs[0], torch.from_numpy(train_targets), inputs[1], torch.from_numpy(test_targets)


MOST_IMAGE_BYTES = 4 << 30
"""Of a folder of images, which is held in memory."""


def _image_folders(folder: Path | None) -> tuple[Path, Path]:
    """The parts ``train`` and ``test`` (or ``val``) of a folder."""
    found = [folder / name for name in ("train", "test", "val") if (folder / name).is_dir()] if folder else []
    if len(found) < 2 or found[0].name != "train":
        allowed = "a folder with train/CLASS/ and test/CLASS/ (or val/CLASS/), which hold images"
        raise UsageError.at("scenario", "train.data_dir", folder and str(folder), allowed)
    return found[0], found[1]


def _image_files(folder: Path | None, side: int) -> list[list[tuple[str, int]]]:
    """Files and classes of both parts, as torchvision's ImageFolder finds them."""
    from torchvision.datasets import ImageFolder

    parts = _image_folders(folder)
    try:
        train, test = (ImageFolder(str(part)) for part in parts)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{folder}: not a folder of images: {str(error).splitlines()[0]}") from None
    if train.classes != test.classes:
        allowed = f"those of {parts[0]}: {', '.join(train.classes)}"
        raise UsageError.at(parts[1], "classes", ", ".join(test.classes), allowed)
    needed = 4 * 3 * side * side * (len(train) + len(test))
    if needed > MOST_IMAGE_BYTES:
        raise UsageError.at("scenario", "train.data_dir", f"{needed} bytes of pixels", f"up to {MOST_IMAGE_BYTES}")
    return [train.samples, test.samples]


def _look_at_images(side: int) -> Look:
    def look(folder: Path | None) -> tuple[int, int, int]:
        train, test = _image_files(folder, side)
        return len(train), len(test), 1 + max(label for _, label in train)

    return look


def _image_folder(folder: Path | None, side: int) -> Data:
    files = _image_files(folder, side)
    images = [np.stack([_read_image(path, side) for path, _ in part]) for part in files]
    targets = [np.array([label for _, label in part], np.int64) for part in files]
    return Data(*_by_channel(*images, *targets))


def _read_image(path: str, side: int) -> np.ndarray:
    """An image (3, side, side) uint8: its shorter side resized, and the middle cut out."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BILINEAR)
            return np.asarray(fitted).transpose(2, 0, 1)
    except OSError as error:
        raise UsageError(f"{path}: not a readable image: {error}") from None


@dataset("image-folder-32", input_shape=(3, 32, 32), classes=0, look=_look_at_images(32))
def image_folder_32(folder: Path | None) -> Data:
    """Images in the folder train.data_dir, train/CLASS/ and test/CLASS/, each cut and resized to 3x32x32."""
    return _image_folder(folder, 32)


@dataset("image-folder-224", input_shape=(3, 224, 224), classes=0, look=_look_at_images(224))
def image_folder_224(folder: Path | None) -> Data:
    """Images in the folder train.data_dir, train/CLASS/ and test/CLASS/, each cut and resized to 3x224x224."""
    return _image_folder(folder, 224)


def places(folder: Path | None) -> list[Path]:
    """Where loaders look: in the folder that a scenario names; else where distributions and downloads put things."""
    if folder is not None:
        return [folder]
    downloads = [cache() / name for name in ("FashionMNIST/raw", CIFAR_10[0], CIFAR_100[0])]
    return [*map(Path, FASHION_FOLDERS), *downloads]


def cache() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pacbench"


def _download_fashion_mnist() -> Path:
    """The folder that it was downloaded to."""
    from torchvision.datasets import FashionMNIST

    try:
        return Path(FashionMNIST(cache(), download=True).raw_folder)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"scenario: train.dataset: 'fashion-mnist' is not on this machine and its download failed ({reason}); "
            "install Debian's dataset-fashion-mnist, or set train.data_dir to a folder with its four .gz files"
        ) from None


def _read_idx(path: Path) -> np.ndarray:
    """An array of unsigned bytes from a gzipped IDX file (format: yann.lecun.com/exdb/mnist)."""
    try:
        content = gzip.decompress(path.read_bytes())
        dimensions = content[3]
        shape = np.frombuffer(content, ">i4", count=dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise UsageError(f"{path}: not a readable IDX file: {error}") from None


def _as_data(
    train_images: np.ndarray, test_images: np.ndarray, train_labels: np.ndarray, test_labels: np.ndarray
) -> Data:
    """Tensors of both parts, standardised by the training part's mean and deviation."""
    mean, deviation = float(train_images.mean()), float(train_images.std())
    train, test = (
        ((torch.from_numpy(images.astype(np.float32)) - mean) / deviation).unsqueeze(1)
        for images in (train_images, test_images)
    )
    labels = (torch.from_numpy(labels.astype(np.int64)) for labels in (train_labels, test_labels))
    return Data(train, next(labels), test, next(labels))
