"""Data sets of images with a class each, standardised."""

from __future__ import annotations

import gzip
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from harness.errors import UsageError, in_one_line
from harness.files import is_file, is_folder
from harness.workload.datasets import DATASETS, Data, Look, dataset
from harness.workload.digits import split_digits


@dataset("digits", train_size=1437, test_size=360, input_shape=(1, 8, 8), classes=10)
def digits(folder: Path | None) -> Data:
    """Handwritten digits, 8x8 grey (UCI ML, bundled with scikit-learn): 1437 to train on, 360 to test."""
    if folder is not None:
        raise UsageError.at("scenario", "train.data_dir", str(folder), "none; scikit-learn brings its digits along")
    return _as_data(*split_digits())


FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist",)
"""Where Linux distributions put Fashion-MNIST (Debian: the package dataset-fashion-mnist)."""


@dataset("fashion-mnist", train_size=60000, test_size=10000, input_shape=(1, 28, 28), classes=10)
def fashion_mnist(folder: Path | None) -> Data:
    """Fashion-MNIST, 28x28 grey (Xiao et al., 2017): 60000 to train on, 10000 to test."""
    candidates = places(folder)
    found = next((place for place in candidates if is_file(place / "train-images-idx3-ubyte.gz")), None)
    if found is None and folder is not None:
        raise UsageError.at(
            "scenario", "train.data_dir", str(folder), "a folder with train-images-idx3-ubyte.gz and its three siblings"
        )
    if found is None:
        found = _download_fashion_mnist()
    return _as_data(
        _read_idx(found / "train-images-idx3-ubyte.gz", dimensions=3),
        _read_idx(found / "t10k-images-idx3-ubyte.gz", dimensions=3),
        _read_idx(found / "train-labels-idx1-ubyte.gz", dimensions=1),
        _read_idx(found / "t10k-labels-idx1-ubyte.gz", dimensions=1),
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


class _ByteType:
    """What a pickled array names as the type of its entries; files of images have bytes."""

    def __init__(self, name: str, *_: object) -> None:
        if name != "u1":
            raise pickle.UnpicklingError(f"it holds entries of type {name}")

    def __setstate__(self, state: object) -> None: ...


class _Pixels:
    """An array of bytes. numpy's own would take a file's word for what lies where in memory."""

    array: np.ndarray

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, _, by_column, content = state
        raw = content.encode("latin1") if isinstance(content, str) else content  # Python 2 wrote text
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_column else "C")


def _as_bytes(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")


STAND_INS = {
    ("numpy", "ndarray"): _Pixels,
    ("numpy", "dtype"): _ByteType,
    ("numpy.core.multiarray", "_reconstruct"): _Pixels,
    ("numpy._core.multiarray", "_reconstruct"): _Pixels,
    ("_codecs", "encode"): _as_bytes,
}
"""What the pickle of an array names, of numpy 1 and 2, and what it gets."""


class _OnlyPixels(pickle.Unpickler):
    """Reads plain containers and arrays of bytes: a pickle may else run whatever it names. Nothing is imported."""

    def find_class(self, module: str, name: str) -> Any:
        """See ``pickle.Unpickler.find_class``."""
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return STAND_INS[module, name]


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
    where = next((place / name for place in [folder or cache()] if is_folder(place / name)), None)
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
            content = _OnlyPixels(file, encoding="latin1").load()
        classes = np.asarray(content[labels], np.int64)
        return content["data"].array.reshape(len(classes), 3072), classes
    except Exception as error:  # reading what is no such file may raise anything
        raise UsageError(f"{path}: not a readable CIFAR file: {in_one_line(error)}") from None


def _download_cifar(kind: str) -> Path:
    import torchvision
    from torchvision.datasets.utils import download_and_extract_archive

    published = getattr(torchvision.datasets, kind)  # which would unpickle whatever has the digest of the archive
    with _downloading(kind, "set train.data_dir to a folder that holds torchvision's"):
        download_and_extract_archive(published.url, cache(), filename=published.filename, md5=published.tgz_md5)
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
    found = [folder / name for name in ("train", "test", "val") if is_folder(folder / name)] if folder else []
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
        raise UsageError(f"{folder}: not a folder of images: {in_one_line(error)}") from None
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
    except Exception as error:  # reading what is no image, or a far too large one, may raise anything
        raise UsageError(f"{path}: not a readable image: {in_one_line(error)}") from None


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
    return Path(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))) / "pacbench"


def _download_fashion_mnist() -> Path:
    """The folder that it was downloaded to."""
    from torchvision.datasets import FashionMNIST

    remedy = "install Debian's dataset-fashion-mnist, or set train.data_dir to a folder with its four .gz files"
    with _downloading("'fashion-mnist'", remedy):
        return Path(FashionMNIST(cache(), download=True).raw_folder)


@contextmanager
def _downloading(name: str, remedy: str) -> Iterator[None]:
    """Within it torchvision downloads a data set; where that fails, one line says what would help."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"scenario: train.dataset: {name} is not on this machine and its download failed ({in_one_line(error)}); "
            f"{remedy}"
        ) from None


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An array of unsigned bytes from a gzipped IDX file (format: yann.lecun.com/exdb/mnist)."""
    try:
        content = gzip.decompress(path.read_bytes())
        if content[3] != dimensions:
            raise ValueError(f"found {content[3]} dimensions; allowed: {dimensions}")
        shape = np.frombuffer(content, ">i4", count=dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except Exception as error:  # reading what is no such file may raise anything
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
