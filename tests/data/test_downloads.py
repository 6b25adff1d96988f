"""MNIST from mirrors on this machine: good ones, and those that answer as mirrors do on bad days.

`make test` does a twentieth of the faults; `make test-faults` all of them.
"""

import gzip
import hashlib
import http.server
import random
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
from children import await_that, end_of, kill, start
from conftest import Tell, Times, closed_port
from torchvision import datasets

from bnexp.data import load as data
from bnexp.data.load import load_data
from bnexp.runs.config import ConfigError, DatasetConfig

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept from one test to the next."""
    monkeypatch.setattr(data, "_loaded", {})


# ---- the mirror

PIECE = 256  # bytes
BAD = ("403", "503", "html", "cut", "flip", "stall", "rude", "empty", "loop")


class Handler(http.server.BaseHTTPRequestHandler):
    """/MODE/NAME: an archive, as the mode has it."""

    server: "Mirror"

    def do_GET(self) -> None:
        _, mode, name = urlsplit(self.path).path.split("/")
        self.server.asked.append(name)
        body = self.server.archives[name]
        with suppress(ConnectionError):  # who asks for a redirect alone hangs up
            if mode in ("403", "503"):
                self.send_error(int(mode))
            elif mode == "rude":
                self.wfile.write(b"what do you want?\r\n\r\n")
            elif mode == "loop":
                self.answer(302, b"", Location=f"{self.path}?again")
            else:
                self.answer(200, changed(body, mode), **{"Content-Length": str(len(body))} if mode == "cut" else {})

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        for place in range(0, len(body), PIECE):
            if "/stall/" in self.path and place:
                self.server.over.wait(2)
            if "/slow/" in self.path:
                time.sleep(0.02)
            self.wfile.write(body[place : place + PIECE])

    def log_message(self, *words: object) -> None:
        pass


def changed(body: bytes, mode: str) -> bytes:
    if mode == "flip":
        place = random.Random(len(body)).randrange(len(body))
        return body[:place] + bytes([body[place] ^ 4]) + body[place + 1 :]
    other = {"html": b"<!doctype html><title>Sign in</title>", "cut": body[: len(body) // 2], "empty": b""}
    return other.get(mode, body)


class Mirror(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, archives: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.archives, self.asked, self.over = archives, list[str](), threading.Event()

    def handle_error(self, *words: object) -> None:
        """Who asks hangs up."""

    def address(self, mode: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{mode}/"


@pytest.fixture(scope="module")
def mirror(fakes: Path) -> Iterator[Mirror]:
    archives = {f"{path.name}.gz": gzip.compress(path.read_bytes(), compresslevel=1) for path in fakes.iterdir()}
    with Mirror(archives) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def from_mirror(
    fake_mnist: DatasetConfig, mirror: Mirror, sets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> DatasetConfig:
    """An empty folder, and the mirror in place of the published ones."""
    shutil.rmtree(Path(fake_mnist.root) / "MNIST")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sets, "PATIENCE", 0.5)
    sums = {name: hashlib.md5(archive).hexdigest() for name, archive in mirror.archives.items()}
    monkeypatch.setattr(datasets.MNIST, "resources", [(n, sums[n]) for n, _ in datasets.MNIST.resources])
    monkeypatch.setattr(datasets.MNIST, "mirrors", [mirror.address("good")])
    mirror.asked.clear()
    return replace(fake_mnist, root=str(tmp_path / "here" / "data"))


Use = Callable[..., None]


@pytest.fixture
def use(mirror: Mirror, sets: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Have torchvision ask mirrors of these modes, one after the other."""
    return lambda *modes: monkeypatch.setattr(datasets.MNIST, "mirrors", [mirror.address(m) for m in modes])


def is_whole(config: DatasetConfig, fakes: Path) -> bool:
    """The published files and nothing else."""
    found = {path.name: path for path in Path(config.root).rglob("*") if path.is_file()}
    published = {path.name: path for path in fakes.iterdir()}
    return found.keys() == published.keys() and all(
        found[name].read_bytes() == path.read_bytes() for name, path in published.items()
    )


def test_missing_files_are_downloaded(from_mirror: DatasetConfig, sets: ModuleType, fakes: Path) -> None:
    assert "train-images-idx3-ubyte is missing" in str(sets.MNIST.problem(from_mirror))
    before = socket.getdefaulttimeout()
    found = load_data(from_mirror)
    assert (len(found.train), len(found.test)) == (550, 100)
    assert is_whole(from_mirror, fakes)
    assert sets.MNIST.problem(from_mirror) is None
    assert socket.getdefaulttimeout() == before


def test_what_is_there_is_not_asked_for(from_mirror: DatasetConfig, mirror: Mirror) -> None:
    load_data(from_mirror)
    mirror.asked.clear()
    data._loaded.clear()
    load_data(from_mirror)
    assert not mirror.asked


def test_refused_download_says_why_and_what_to_do(
    from_mirror: DatasetConfig, sets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{closed_port()}/"])
    with pytest.raises(ConfigError) as error:
        load_data(from_mirror)
    folder = Path(from_mirror.root) / "MNIST" / "raw"
    parts = (f"{folder / 'train-images-idx3-ubyte'} is missing", "Connection refused", f"in {folder} by hand")
    assert all(part in str(error.value) for part in (*parts, "dataset=digits", *sets.MNIST_MD5))
    assert "\n" not in str(error.value)


# ---- bad days


def test_bad_mirrors(
    from_mirror: DatasetConfig, use: Use, sets: ModuleType, fakes: Path, times: Times, tell: Tell
) -> None:
    """The next one is asked; where none is left, nothing is."""
    chance, ends = random.Random(8), {"whole": 0, "none": 0}
    for number in range(count := times(100)):
        modes = [BAD[number % len(BAD)], *chance.sample(BAD, chance.randint(0, 2))]
        modes += ["good"] if chance.random() < 0.7 else []
        use(*modes)
        if modes[-1] == "good":
            sets.MNIST.load(from_mirror)
            assert is_whole(from_mirror, fakes), modes
            ends["whole"] += 1
            shutil.rmtree("here")
        else:
            with pytest.raises(ConfigError, match="could not be downloaded"):
                sets.MNIST.load(from_mirror)
            assert not Path("here").exists(), modes
            ends["none"] += 1
    tell(
        f"{count} downloads with mirrors that refuse, stall, break off, change a bit or send HTML: {ends['whole']} "
        f"whole from the next one, {ends['none']} refused where none was left; no bad byte used"
    )


def test_killed_downloads(
    from_mirror: DatasetConfig, mirror: Mirror, use: Use, sets: ModuleType, fakes: Path, times: Times, tell: Tell
) -> None:
    chance, whole, killed = random.Random(9), 0, 0
    for _ in range(count := times(20)):
        use("slow")
        mirror.asked.clear()
        pid = start(lambda: len(sets.MNIST.load(from_mirror).train) and 0)
        await_that(lambda: mirror.asked, pid)
        time.sleep(chance.uniform(0, 0.4))
        kill(pid, signal.SIGKILL)
        killed += end_of(pid) == -signal.SIGKILL
        use("good")
        sets.MNIST.load(from_mirror)
        whole += is_whole(from_mirror, fakes)
        shutil.rmtree("here")
    tell(f"{count} slow downloads, {killed} killed: {whole} were whole after the next start")
    assert whole == count
    assert killed >= count / 2


def test_fetches_at_once(
    from_mirror: DatasetConfig,
    mirror: Mirror,
    sets: ModuleType,
    fakes: Path,
    times: Times,
    tell: Tell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One downloads, the others wait for it."""
    monkeypatch.setattr(sets, "PATIENCE", 30)  # on a busy machine this mirror may take longer than a bad one is given
    for _ in range(rounds := times(10)):
        mirror.asked.clear()
        children = [start(lambda: len(sets.MNIST.load(from_mirror).train) - 600) for _ in range(8)]
        assert [end_of(pid) for pid in children] == [0] * 8
        assert sorted(mirror.asked) == sorted([*mirror.archives] * 2)  # each asked for its redirect, then for itself
        assert is_whole(from_mirror, fakes)
        shutil.rmtree("here")
    tell(f"8 fetches at once, {rounds} rounds: one download each")
