"""Data sets: the embedded digits, image folders, the published files."""

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import Bnexp, closed_port
from PIL import Image

from bnexp import data
from bnexp.config import ConfigError, DatasetConfig
from bnexp.data import Data, find_loader, load_data, split
from bnexp.datasets import image_folder
from bnexp.datasets.images import Images, Source
from bnexp.runs import find_runs

DATA = Path(os.environ.get("BNEXP_DATA", Path(__file__).parents[1] / "data"))
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


# --- image folders


def picture(seed: int, colour: bool, size: tuple[int, int]) -> np.ndarray:
    """A smooth picture, which JPEG keeps."""
    random = np.random.default_rng(seed)
    slopes = random.uniform(1, 6, (2, 3 if colour else 1))
    rows, columns = np.mgrid[: size[0], : size[1], :1][:2]
    pixels = (30 + rows * slopes[0] + columns * slopes[1]).clip(0, 255).astype(np.uint8)
    return pixels if colour else pixels[..., 0]


def make_folder(
    root: Path, colour: bool = True, size: tuple[int, int] = (12, 12), suffix: str = "png", count: int = 6
) -> Path:
    for number, name in enumerate(["cats", "dogs", "eels"]):
        for part, images in (("train", count), ("test", 2)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(images):
                pixels = picture(100 * number + index + (50 if part == "test" else 0), colour, size)
                Image.fromarray(pixels).save(folder / f"{index}.{suffix}")
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> DatasetConfig:
    folder = make_folder(tmp_path / "pictures")
    return DatasetConfig("image_folder", root=str(tmp_path / "data"), path=str(folder), size=12, validation=4)


def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at every decoding."""
    calls: list[int] = []
    decode = image_folder.decode

    def counted(files: dict[str, list[Path]], classes: tuple[str, ...], size: int) -> dict[str, torch.Tensor]:
        calls.append(1)
        return decode(files, classes, size)

    monkeypatch.setattr(image_folder, "decode", counted)
    return calls


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG"])
@pytest.mark.parametrize("colour", [True, False])
def test_image_folder_pixels(tmp_path: Path, colour: bool, suffix: str) -> None:
    folder = make_folder(tmp_path / "pictures", colour, suffix=suffix)
    source = image_folder.load(DatasetConfig("image_folder", root=str(tmp_path), path=str(folder), size=12))
    assert source.classes == ("cats", "dogs", "eels")
    assert source.train.pixels.shape == (18, 3 if colour else 1, 12, 12)
    assert source.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.train.pixels.dtype == torch.uint8
    expected = torch.from_numpy(picture(101, colour, (12, 12)).reshape(12, 12, -1)).permute(2, 0, 1)
    error = (source.train.pixels[7].int() - expected.int()).abs()
    assert int(error.max()) <= (0 if suffix == "png" else 12)


def test_one_coloured_image_makes_all_of_them_coloured(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pictures", colour=False)
    Image.fromarray(picture(0, True, (12, 12))).save(folder / "test" / "eels" / "0.png")
    source = image_folder.load(DatasetConfig("image_folder", root=str(tmp_path), path=str(folder), size=12))
    assert source.train.pixels.shape[1] == source.test.pixels.shape[1] == 3
    assert torch.equal(source.train.pixels[:, 0], source.train.pixels[:, 2])


@pytest.mark.parametrize("size", [(24, 24), (40, 10), (5, 7)])
def test_images_are_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = make_folder(tmp_path / "pictures", size=size)
    source = image_folder.load(DatasetConfig("image_folder", root=str(tmp_path), path=str(folder), size=12))
    assert source.train.pixels.shape == (18, 3, 12, 12)
    original = picture(0, True, size).astype(float).mean()
    assert float(source.train.pixels[0].double().mean()) == pytest.approx(original, abs=3)


@pytest.mark.parametrize("suffix", ["gif", "txt"])
def test_other_files_are_left_out(pictures: DatasetConfig, suffix: str) -> None:
    (Path(str(pictures.path)) / "train" / "cats" / f"x.{suffix}").write_bytes(b"x")
    (Path(str(pictures.path)) / "train" / f"y.{suffix}").write_bytes(b"y")
    assert len(image_folder.load(pictures).train) == 18


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    pixels = np.linspace(0, 65535, 144).astype(np.uint16).reshape(12, 12)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    found, coloured_file = image_folder.read_image(tmp_path / "deep.png", 12)
    assert not coloured_file
    assert int(np.abs(found[..., 0].astype(int) - pixels // 256).max()) <= 1


def test_split_of_a_folder_is_fixed_and_mixed(pictures: DatasetConfig) -> None:
    torch.manual_seed(1)
    first = reloaded(pictures)
    torch.manual_seed(2)
    second = reloaded(pictures)
    assert first.checksum == second.checksum
    assert (len(first.train), len(first.validation), len(first.test)) == (14, 4, 6)
    assert len(first.validation.labels.unique()) > 1
    labels = torch.cat([first.validation.labels, first.train.labels])
    assert torch.bincount(labels).tolist() == [6, 6, 6]


def test_cache_is_reused(pictures: DatasetConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = decodings(monkeypatch)
    first, second = reloaded(pictures), reloaded(pictures)
    assert len(calls) == 1
    assert first.checksum == second.checksum
    assert [path.suffix for path in sorted((Path(pictures.root) / "cache").iterdir())] == [".safetensors", ".sha256"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "digest", "no digest"])
def test_damaged_cache_is_rebuilt(pictures: DatasetConfig, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    calls = decodings(monkeypatch)
    expected = reloaded(pictures).checksum
    (cache,) = (Path(pictures.root) / "cache").glob("*.safetensors")
    digest = cache.with_name(cache.name + ".sha256")
    whole = cache.read_bytes()
    if damage in ("flip", "truncate", "empty"):
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        cache.write_bytes({"flip": flipped, "truncate": whole[:-10], "empty": b""}[damage])
    elif damage == "digest":
        digest.write_text("")
    else:
        digest.unlink()
    assert reloaded(pictures).checksum == expected
    assert cache.read_bytes() == whole
    assert reloaded(pictures).checksum == expected
    assert len(calls) == 2


@pytest.mark.parametrize("change", ["content", "added", "removed", "size"])
def test_changed_files_are_decoded_anew(pictures: DatasetConfig, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    calls = decodings(monkeypatch)
    before = reloaded(pictures).checksum
    path = Path(str(pictures.path)) / "train" / "cats" / "0.png"
    if change == "content":
        Image.fromarray(255 - picture(0, True, (12, 12))).save(path)
        os.utime(path, ns=(1, 1))
    elif change == "added":
        Image.fromarray(picture(7, True, (12, 12))).save(path.with_name("new.png"))
    elif change == "removed":
        path.unlink()
    else:
        pictures = replace(pictures, size=6)
    assert reloaded(pictures).checksum != before
    assert len(calls) == 2


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(30), "truncated"])
def test_broken_image_is_named(pictures: DatasetConfig, content: bytes | str) -> None:
    path = Path(str(pictures.path)) / "train" / "dogs" / "3.png"
    path.write_bytes(path.read_bytes()[:-60] if isinstance(content, str) else content)
    with pytest.raises(ConfigError) as error:
        load_data(pictures)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_dangling_link_is_named(pictures: DatasetConfig) -> None:
    path = Path(str(pictures.path)) / "train" / "dogs" / "gone.png"
    path.symlink_to(path.with_name("nowhere.png"))
    with pytest.raises(ConfigError, match=r"gone\.png"):
        load_data(pictures)


def test_root_that_is_no_folder_is_named(pictures: DatasetConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=str(tmp_path / "file")):
        load_data(replace(pictures, root=str(tmp_path / "file")))


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def no_test(folder: Path) -> Path:
    remove(folder / "test")
    return folder / "test"


def empty_train(folder: Path) -> Path:
    remove(folder / "train")
    (folder / "train" / "cats").mkdir(parents=True)
    return folder / "train"


def train_is_a_file(folder: Path) -> Path:
    remove(folder / "train")
    (folder / "train").write_text("")
    return folder / "train"


def train_links_to_itself(folder: Path) -> Path:
    remove(folder / "train")
    (folder / "train").symlink_to(folder / "train")
    return folder / "train"


def one_class(folder: Path) -> Path:
    for name in ("dogs", "eels"):
        remove(folder / "train" / name)
        remove(folder / "test" / name)
    return Path("cats")


def unknown_class(folder: Path) -> Path:
    (folder / "test" / "dogs").rename(folder / "test" / "frogs")
    return Path("test/frogs")


@pytest.mark.parametrize(
    "spoil", [no_test, empty_train, train_is_a_file, train_links_to_itself, one_class, unknown_class]
)
def test_unusable_folder_is_named(pictures: DatasetConfig, spoil: Callable[[Path], Path]) -> None:
    folder = Path(str(pictures.path))
    culprit = spoil(folder)
    with pytest.raises(ConfigError) as error:
        load_data(pictures)
    assert str(culprit) in str(error.value)
    assert f"dataset.path={folder}" in str(error.value)
    assert image_folder.problem(pictures) == str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_forbidden_folder_is_named(pictures: DatasetConfig) -> None:
    folder = Path(str(pictures.path)) / "train"
    folder.chmod(0)
    try:
        with pytest.raises(ConfigError, match="Permission denied"):
            load_data(pictures)
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("path", [None, "", "/nowhere/at/all"])
def test_missing_path_is_named(tmp_path: Path, path: str | None) -> None:
    with pytest.raises(ConfigError, match=r"dataset.path"):
        load_data(DatasetConfig("image_folder", root=str(tmp_path), path=path))


def test_a_usable_folder_has_no_problem(pictures: DatasetConfig) -> None:
    assert image_folder.problem(pictures) is None


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
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
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
    cifar, sums = sets.datasets.CIFAR10, {}
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


def test_cifar_trains_from_the_command_line(bnexp: Bnexp, fake_cifar: DatasetConfig) -> None:
    data = ("dataset=cifar10", f"dataset.root={fake_cifar.root}", "dataset.validation=30", "dataset.augment=flip_crop")
    outcome = bnexp("train", *data, "arch=resnet", "arch.depth=8", "batch_size=10", "steps=2", "hydra.run.dir=mine")
    assert (outcome.status, outcome.err) == (0, "")
    [run] = find_runs([Path("mine")])
    assert run.summary["status"] == "finished"
    assert run.record["dataset"]["sha256"] == load_data(fake_cifar).checksum


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_cifar_is_named_and_not_unpickled(fake_cifar: DatasetConfig, sets: ModuleType, name: str) -> None:
    path = Path(fake_cifar.root) / sets.datasets.CIFAR10.base_folder / name
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ConfigError, match=f"dataset=cifar10: .*{path} is damaged"):
        load_data(fake_cifar)


def test_missing_cifar_file_is_named(
    fake_cifar: DatasetConfig, sets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets.datasets.CIFAR10, "url", f"http://127.0.0.1:{closed_port()}/cifar-10-python.tar.gz")
    path = Path(fake_cifar.root) / sets.datasets.CIFAR10.base_folder / "data_batch_2"
    path.unlink()
    with pytest.raises(ConfigError, match=f"{path} is missing and could not be downloaded .* dataset=digits"):
        load_data(fake_cifar)
