"""Data sets: real, the same each time, and of the sizes they declare."""

from __future__ import annotations

import pickle
import struct
import sysconfig
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from harness.errors import UsageError
from harness.workload.augment import crop_and_flip
from harness.workload.data import DATASETS, Data
from harness.workload.digits import split_digits


@pytest.fixture(scope="module")
def text() -> Data:
    return DATASETS["python-source"].load(None)


HERE = ("digits", "fashion-mnist", "fashion-mnist-rgb", "python-source")
"""Those that need no folder and no download."""


def cifar_file(path: Path, count: int, labels: str, classes: int) -> None:
    """A file as torchvision and the authors have it: a pickled dictionary."""
    path.parent.mkdir(exist_ok=True)
    dice = np.random.default_rng(len(path.name))
    content = {"data": dice.integers(0, 256, (count, 3072), np.uint8), labels: list(range(classes))[:count]}
    path.write_bytes(pickle.dumps(content))


def cifar(folder: Path) -> Path:
    for number in range(1, 6):
        cifar_file(folder / "cifar-10-batches-py" / f"data_batch_{number}", 8, "labels", 10)
    cifar_file(folder / "cifar-10-batches-py" / "test_batch", 6, "labels", 10)
    cifar_file(folder / "cifar-100-python" / "train", 40, "fine_labels", 100)
    cifar_file(folder / "cifar-100-python" / "test", 6, "fine_labels", 100)
    return folder


def images(folder: Path) -> Path:
    for part, count in (("train", 4), ("test", 2)):
        for label, colour in (("cats", (200, 10, 10)), ("dogs", (10, 10, 200))):
            (folder / part / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (50 + number, 40), colour).save(folder / part / label / f"{number}.png")
    return folder


def text_files(folder: Path) -> Path:
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(f"{number:02} the quick brown fox " * 20)
    return folder


def test_digits_are_split_as_scikit_learn_splits_them() -> None:
    digits = load_digits()
    options = {"test_size": 360, "random_state": 0, "stratify": digits.target}
    for ours, theirs in zip(split_digits(), train_test_split(digits.images, digits.target, **options), strict=True):
        assert np.array_equal(ours, theirs)


def test_a_folder_for_digits_is_refused_since_they_are_not_read_from_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.data_dir: found '.*'; allowed: none; scikit-learn"):
        DATASETS["digits"].load(tmp_path)


def test_cifar_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar(tmp_path)
    for name, kind in (("cifar-10", torchvision.datasets.CIFAR10), ("cifar-100", torchvision.datasets.CIFAR100)):
        monkeypatch.setattr(kind, "_check_integrity", lambda self: True)  # small files are not the published ones
        monkeypatch.setattr(kind, "_load_meta", lambda self: None)
        data = DATASETS[name].load(tmp_path)
        theirs = kind(str(tmp_path), train=True)
        assert data.train_inputs.shape == (40, 3, 32, 32)
        assert data.test_inputs.shape == (6, 3, 32, 32)
        assert data.train_targets.tolist() == theirs.targets
        pixels = torch.from_numpy(theirs.data).permute(0, 3, 1, 2).float()
        mean, deviation = pixels.mean((0, 2, 3), keepdim=True), pixels.std((0, 2, 3), keepdim=True, correction=0)
        assert torch.allclose(data.train_inputs, (pixels - mean) / deviation, atol=1e-4)


def test_a_file_that_would_run_something_is_refused(tmp_path: Path) -> None:
    file = cifar(tmp_path) / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(pickle.dumps(print))
    with pytest.raises(UsageError, match=r"data_batch_3: not a readable CIFAR file: it names builtins\.print"):
        DATASETS["cifar-10"].load(tmp_path)
    with pytest.raises(UsageError, match=r"train\.data_dir: found .*; allowed: a folder with cifar-100-python/"):
        DATASETS["cifar-100"].load(tmp_path / "cifar-10-batches-py")


def test_a_folder_of_images_has_their_classes_and_size(tmp_path: Path) -> None:
    known = DATASETS["image-folder-32"].in_folder(str(images(tmp_path)))
    data = known.load(tmp_path)
    assert (known.train_size, known.test_size, known.classes) == (8, 4, 2)
    assert data.train_inputs.shape == (8, 3, 32, 32)
    assert data.test_targets.tolist() == [0, 0, 1, 1]
    red = data.train_inputs[data.train_targets == 0]
    assert torch.equal(red, red[:1].expand_as(red))
    assert red[0, 0].min() > 0 > red[0, 2].max()


def png(*kinds: bytes) -> bytes:
    """A grey image whose pixels are in two chunks of these kinds."""
    pixels = zlib.compress(bytes(33 * 32))
    header = (b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0))
    chunks = [header, (kinds[0], pixels[:8]), (kinds[1], pixels[8:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def test_an_image_whose_second_chunk_is_damaged_is_one_line(tmp_path: Path) -> None:
    file = images(tmp_path) / "train" / "cats" / "2.png"
    file.write_bytes(png(b"IDAT", b"IDAT"))
    assert DATASETS["image-folder-32"].load(tmp_path).train_inputs.shape == (8, 3, 32, 32)
    file.write_bytes(png(b"IDAT", b"\xc9DAT"))
    with pytest.raises(UsageError, match=r"train/cats/2\.png: not a readable image: broken PNG file"):
        DATASETS["image-folder-32"].load(tmp_path)


def test_an_image_of_far_too_many_pixels_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 40 // 4)
    with pytest.raises(UsageError, match=r"train/cats/0\.png: not a readable image: Image size .* exceeds limit"):
        DATASETS["image-folder-32"].load(images(tmp_path))


@pytest.mark.parametrize("name", ["image-folder-32", "text-folder"])
def test_a_folder_that_is_missing_or_has_another_layout_is_refused(name: str, tmp_path: Path) -> None:
    for data_dir in (None, str(tmp_path)):
        with pytest.raises(UsageError, match=r"train\.data_dir: found .*; allowed: a folder with"):
            DATASETS[name].in_folder(data_dir)


def test_a_folder_of_text_keeps_whole_files_for_the_test(tmp_path: Path) -> None:
    known = DATASETS["text-folder"].in_folder(str(text_files(tmp_path)))
    data = known.load(tmp_path)
    assert (len(data.train_inputs), len(data.test_inputs)) == (known.train_size, known.test_size)
    assert torch.equal(data.train_inputs[:, 1:], data.train_targets[:, :-1])
    assert bytes(data.test_inputs[0].tolist()).startswith(b"00 the quick")


def test_augmentation_repeats_and_moves_pixels_alone() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8) + 1
    once, again, other = (crop_and_flip(images, (0, 1, number)) for number in (5, 5, 6))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert once.shape == images.shape
    for own, whole in zip(once, images, strict=True):
        assert set(own.unique().tolist()) <= {0.0, *whole.unique().tolist()}
        kept = own[:, (own[0] != 0).any(1)][:, :, (own[0] != 0).any(0)]
        _, rows, columns = kept.shape
        windows = [each.unfold(1, rows, 1).unfold(2, columns, 1) for each in (whole, whole.flip(2))]
        assert any((kept[:, None, None] == each).all(-1).all(-1).all(0).any() for each in windows)


@pytest.mark.parametrize("name", HERE)
def test_a_data_set_is_what_it_declares_to_be(name: str) -> None:
    known = DATASETS[name].in_folder(None)
    data = known.load(None)
    for inputs, targets, size in (
        (data.train_inputs, data.train_targets, known.train_size),
        (data.test_inputs, data.test_targets, known.test_size),
    ):
        assert inputs.shape == (size, *known.input_shape)
        assert targets.shape in ((size,), inputs.shape)
        assert targets.dtype == torch.int64
        assert targets.min() >= 0
        assert targets.max() < known.classes


def test_each_target_of_text_is_the_byte_after_its_input(text: Data) -> None:
    assert torch.equal(text.train_inputs[:, 1:], text.train_targets[:, :-1])
    whole = b"".join(path.read_bytes() for path in Path(sysconfig.get_path("stdlib")).glob("*.py"))
    for row in (text.train_inputs[5], text.test_targets[7]):
        assert bytes(row.tolist()) in whole


def test_text_is_read_the_same_each_time(text: Data) -> None:
    again = DATASETS["python-source"].load(None)
    assert torch.equal(text.train_inputs, again.train_inputs)
    assert torch.equal(text.test_targets, again.test_targets)


def test_text_is_tested_on_files_that_were_not_trained_on(tmp_path: Path) -> None:
    for number in range(20):  # every tenth is kept for the test
        (tmp_path / f"m{number:02}.py").write_text(chr(ord("a") + number) * 250_000)
    data = DATASETS["python-source"].load(tmp_path)
    assert set(data.test_inputs.unique().tolist()) == {ord("a"), ord("k")}
    assert {ord("a"), ord("k")}.isdisjoint(data.train_inputs.unique().tolist())
    assert len(data.train_inputs.unique()) == 18


def test_a_folder_with_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small.py").write_text("pass\n")
    with pytest.raises(UsageError, match=r"train\.data_dir: found .*; allowed: a folder with at least \d+ bytes"):
        DATASETS["python-source"].load(tmp_path)


def test_clothes_in_colour_are_the_same_clothes_padded() -> None:
    grey, colour = (DATASETS[name].load(None) for name in ("fashion-mnist", "fashion-mnist-rgb"))
    assert torch.equal(colour.train_inputs[:9, 2, 2:30, 2:30], grey.train_inputs[:9, 0])
    assert torch.equal(colour.train_targets, grey.train_targets[:10000])
    assert (colour.train_inputs[:, :, :2] == grey.train_inputs.min()).all()
