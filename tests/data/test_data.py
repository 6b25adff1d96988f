"""Data sets: the embedded digits, image folders, the published files."""

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import numpy as np
import pytest
import torch
from conftest import Bnexp, closed_port
from torchvision import datasets

from bnexp.data import load as data
from bnexp.data.images import Images, Source
from bnexp.data.load import Data, find_loader, load_data, split
from bnexp.runs.config import ConfigError, DatasetConfig
from bnexp.runs.record import find_runs

DATA = Path(os.environ.get("BNEXP_DATA", Path(__file__).parents[2] / "data"))
DIGITS = DatasetConfig("digits", validation=200)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept from one test to the next."""
    monkeypatch.setattr(data, "_loaded", {})


def reloaded(config: DatasetConfig) -> Data:
    data._loaded.clear()
    return load_data(config)


# --- splits and scaling


def test_digits_splits() -> None:
    digits = load_data(DIGITS)
    assert [len(images) for images in (digits.train, digits.validation, digits.test)] == [1237, 200, 360]
    assert digits.shape == (1, 8, 8)
    assert digits.classes == 10
    assert digits.train.pixels.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64


def test_digits_are_those_of_the_package_each_once() -> None:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes seconds

    published, digits = load_digits(), load_data(DIGITS)
    splits = (digits.train, digits.validation, digits.test)
    found = sorted((int(y), x.tobytes()) for s in splits for x, y in zip(s.pixels.numpy(), s.labels, strict=True))
    images = published.images.astype(np.uint8)
    assert found == sorted((int(y), x.tobytes()) for x, y in zip(images, published.target, strict=True))
    labels = torch.cat([s.labels for s in splits])
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert int(torch.bincount(digits.test.labels).min()) > 20


def test_loading_again_gives_the_same_bytes() -> None:
    torch.manual_seed(1)
    first = reloaded(DIGITS)
    torch.manual_seed(2)
    second = reloaded(DIGITS)
    assert first is not second
    assert first.checksum == second.checksum
    assert torch.equal(first.train.pixels, second.train.pixels)


def test_scaled_to_one() -> None:
    digits = load_data(DIGITS)
    scaled = digits.scaled(digits.train.pixels)
    assert (float(scaled.min()), float(scaled.max())) == (0.0, 1.0)
    torch.testing.assert_close(scaled, digits.train.pixels / 16)


def coloured(count: int, seed: int = 0) -> Images:
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 6, 5), generator=random, dtype=torch.uint8)
    pixels[:, 1] //= 3  # another mean and deviation in every channel
    pixels[:, 2] = pixels[:, 2] // 2 + 100
    return Images(pixels, torch.arange(count) % 4)


COLOURED = Source(coloured(50), coloured(20, 1), ("a", "b", "c", "d"))


def test_standardized_training_images_have_mean_zero_and_deviation_one() -> None:
    config = DatasetConfig("cifar10", validation=10, standardize=True)
    found = split(COLOURED, config)
    assert found.scale.shape == found.shift.shape == (3, 1, 1)
    scaled = found.scaled(found.train.pixels).double()
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-5, rtol=0)
    assert float(found.scaled(found.test.pixels).mean().abs()) > 1e-4  # of the training set, not of the test set


def test_binarized_pixels_are_0_or_1_whichever_is_nearer() -> None:
    pixels = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8).reshape(6, 1, 1, 1)
    source = Source(Images(pixels, torch.arange(6) % 2), Images(pixels, torch.arange(6) % 2), ("a", "b"))
    found = split(source, DatasetConfig("mnist", validation=1, binarize=True))
    assert found.scaled(found.train.pixels).flatten().tolist() == [0, 0, 1, 1, 1]
    assert found.scaled(found.test.pixels).flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert found.checksum != split(source, DatasetConfig("mnist", validation=1)).checksum


def test_standardizing_a_constant_channel_stays_finite() -> None:
    source = Source(Images(torch.full((9, 1, 4, 4), 7, dtype=torch.uint8), torch.arange(9) % 2), COLOURED.test, ("a",))
    found = split(source, DatasetConfig("mnist", validation=1, standardize=True))
    assert bool(torch.isfinite(found.scaled(found.train.pixels)).all())


def test_validation_is_the_first_training_images_and_limit_the_next() -> None:
    found = split(COLOURED, DatasetConfig("cifar10", validation=10, limit=5))
    assert torch.equal(found.validation.pixels, COLOURED.train.pixels[:10])
    assert torch.equal(found.train.pixels, COLOURED.train.pixels[10:15])
    assert torch.equal(found.train.labels, COLOURED.train.labels[10:15])
    assert torch.equal(found.test.pixels, COLOURED.test.pixels)


def test_standardize_sees_the_limited_training_set_alone() -> None:
    config = DatasetConfig("cifar10", validation=10, limit=5, standardize=True)
    found = split(COLOURED, config)
    assert float(found.scaled(found.train.pixels).mean().abs()) < 1e-5


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("tensor", ["pixels", "labels"])
def test_checksum_sees_every_byte(part: str, tensor: str) -> None:
    config = DatasetConfig("cifar10", validation=10)
    before = split(COLOURED, config).checksum
    images = getattr(COLOURED, part)
    changed = {tensor: getattr(images, tensor).clone()}
    changed[tensor].view(-1)[-1] += 1
    assert split(replace(COLOURED, **{part: replace(images, **changed)}), config).checksum != before


@pytest.mark.parametrize("validation", [50, 51])
def test_validation_must_leave_something_to_train_on(validation: int) -> None:
    with pytest.raises(ConfigError, match=f"dataset.validation={validation} .* fewer than the 50 training images"):
        split(COLOURED, DatasetConfig("cifar10", validation=validation))


def test_augmenting_grey_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset.augment=flip_crop"):
        load_data(replace(DIGITS, augment="flip_crop"))


def test_unknown_data_set_names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"dataset=minst .* mnist, .*image_folder"):
        find_loader("minst")


# --- MNIST and Fashion-MNIST


def test_mnist_is_read(fake_mnist: DatasetConfig) -> None:
    found = load_data(fake_mnist)
    assert [len(images) for images in (found.train, found.validation, found.test)] == [550, 50, 100]
    assert found.shape == (1, 28, 28)
    assert found.classes == 10
    assert found.validation.pixels[0].flatten()[:3].tolist() == [0, 1, 2]
    assert found.train.labels[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "one byte", "header"])
def test_damaged_mnist_is_named_and_not_used(fake_mnist: DatasetConfig, name: str, damage: str) -> None:
    path = Path(fake_mnist.root) / "MNIST" / "raw" / name
    whole = path.read_bytes()
    path.unlink()
    changed = whole[:-1] + bytes([whole[-1] ^ 1])
    damaged = {"truncated": whole[:-5], "empty": b"", "one byte": changed, "header": b"\1" + whole[1:]}
    path.write_bytes(damaged[damage])
    with pytest.raises(ConfigError, match=f"dataset=mnist: .*{path} is damaged"):
        load_data(fake_mnist)
    assert not data._loaded


def test_labels_above_nine_are_damage_without_a_checksum(
    fake_mnist: DatasetConfig, sets: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.parent.mkdir()
    (tmp_path / "MNIST" / "raw").rename(folder)
    config = replace(fake_mnist, name="fashion_mnist")
    assert sets.FASHION_MNIST.problem(config) is None
    path = folder / "t10k-labels-idx1-ubyte"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-1] + b"\x0a")
    with pytest.raises(ConfigError, match=f"dataset=fashion_mnist: .*{path} is damaged"):
        load_data(config)


def test_unreadable_file_is_named(fake_mnist: DatasetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"train-images-idx3-ubyte cannot be read: Permission denied"):
        load_data(fake_mnist)


def test_only_checked_files_are_used(fake_mnist: DatasetConfig) -> None:
    """Not the training.pt and test.pt of old versions of torchvision, which nothing checks."""
    folder = Path(fake_mnist.root) / "MNIST" / "processed"
    folder.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(30, 28, 28, dtype=torch.uint8), torch.zeros(30, dtype=torch.int64)), folder / name)
    source = find_loader("mnist").load(fake_mnist)
    assert (len(source.train), len(source.test)) == (600, 100)


def test_published_mnist() -> None:
    folder = DATA / "MNIST" / "raw"
    if not folder.is_dir():
        pytest.skip(f"MNIST is not in {folder}: bnexp data fetch dataset=mnist")
    found = load_data(DatasetConfig("mnist", root=str(DATA), validation=5000))
    raw = np.fromfile(folder / "train-images-idx3-ubyte", dtype=np.uint8)[16:].reshape(60_000, 1, 28, 28)
    labels = np.fromfile(folder / "train-labels-idx1-ubyte", dtype=np.uint8)[8:]
    assert np.array_equal(found.validation.pixels.numpy(), raw[:5000])
    assert np.array_equal(found.train.pixels.numpy(), raw[5000:])
    assert np.array_equal(found.validation.labels.numpy(), labels[:5000])
    assert labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


# --- CIFAR-10


@pytest.fixture
def fake_cifar(sets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetConfig:
    """Twenty images in each of the published files' place, in their format."""
    cifar, sums = datasets.CIFAR10, {}
    folder = tmp_path / cifar.base_folder
    folder.mkdir()
    for number, name in enumerate([*(name for name, _ in cifar.train_list), "test_batch"]):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": [(number + row) % 10 for row in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))
    for path in folder.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(sets.CIFAR10.files, path.name, sums[path.name])
    monkeypatch.setattr(cifar, "train_list", [[name, sums[name]] for name, _ in cifar.train_list])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": sums["batches.meta"]})
    return DatasetConfig("cifar10", root=str(tmp_path), validation=30)


def test_cifar_is_read(fake_cifar: DatasetConfig) -> None:
    found = load_data(fake_cifar)
    assert [len(images) for images in (found.train, found.validation, found.test)] == [70, 30, 20]
    assert found.shape == (3, 32, 32)
    assert found.train.pixels.dtype == torch.uint8
    assert found.classes == 10
    first = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8).reshape(20, 3, 32, 32)
    assert np.array_equal(found.validation.pixels[:20].numpy(), first)
    assert found.validation.labels[:20].tolist() == [row % 10 for row in range(20)]


def test_what_is_known_of_the_files_is_torchvisions(sets: ModuleType) -> None:
    """Names, folders, MD5 and classes: they are written down, since importing torchvision takes seconds."""
    cifar = datasets.CIFAR10
    published = dict([*cifar.train_list, *cifar.test_list, (cifar.meta["filename"], cifar.meta["md5"])])
    assert published == sets.CIFAR10_MD5
    assert cifar.base_folder == sets.CIFAR10.folder
    for ours in (sets.MNIST, sets.FASHION_MNIST, sets.CIFAR10):
        assert sets.torchvision_class(ours.factory) is getattr(datasets, ours.factory)
    for ours in (sets.MNIST, sets.FASHION_MNIST):
        theirs = getattr(datasets, ours.factory)
        assert list(ours.classes) == theirs.classes
        assert ours.folder == f"{theirs.__name__}/raw"
        assert {f"{name}.gz" for name in ours.files} == {name for name, _ in theirs.resources}


def test_cifar_trains_from_the_command_line(bnexp: Bnexp, fake_cifar: DatasetConfig) -> None:
    data = ("dataset=cifar10", f"dataset.root={fake_cifar.root}", "dataset.validation=30", "dataset.augment=flip_crop")
    outcome = bnexp("train", *data, "arch=resnet", "arch.depth=8", "batch_size=10", "steps=2", "hydra.run.dir=mine")
    assert (outcome.status, outcome.err) == (0, "")
    [run] = find_runs([Path("mine")])
    assert run.summary["status"] == "finished"
    assert run.record["dataset"]["sha256"] == load_data(fake_cifar).checksum


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_cifar_is_named_and_not_unpickled(fake_cifar: DatasetConfig, sets: ModuleType, name: str) -> None:
    path = Path(fake_cifar.root) / datasets.CIFAR10.base_folder / name
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ConfigError, match=f"dataset=cifar10: .*{path} is damaged"):
        load_data(fake_cifar)


def test_missing_cifar_file_is_named(
    fake_cifar: DatasetConfig, sets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{closed_port()}/cifar-10-python.tar.gz")
    path = Path(fake_cifar.root) / datasets.CIFAR10.base_folder / "data_batch_2"
    path.unlink()
    with pytest.raises(ConfigError, match=f"{path} is missing and could not be downloaded .* dataset=digits"):
        load_data(fake_cifar)
