"""Where compiled code is kept: in a directory that only the user can write to, since what it holds is executed."""

import atexit
import hashlib
import os
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps what it compiled; child processes inherit it
TRITON = "TRITON_CACHE_DIR"
ROOM = 512 * 2**20  # bytes that have to be free for torch's files; precompiled headers take 280 MB
DIGEST = 32  # bytes of a SHA-256


@dataclass(frozen=True)
class Cache:
    """Directories for compiled code. kept: bnexp's compiled steps; None where nothing is kept. scratch: torch's files;
    None where nothing can be compiled. problem: why one of them is not where it should be. private: scratch is a
    temporary directory, which this process will remove.
    """

    kept: Path | None
    scratch: Path | None
    problem: str | None
    private: bool = False


class UnsafeError(OSError):
    """Another user could change what is read there."""


_caches: dict[tuple[str, ...], Cache] = {}
_ours = ("", "")  # what this process has set the variable to, and its value before: the user's choice


def open_cache() -> Cache:
    """Find the directories, make them where they are missing, and set torch's variable to its own."""
    global _ours  # noqa: PLW0603 - as the environment, once a process
    key = surroundings()
    chosen = key[1]
    cache = _caches[key] = _caches.get(key) or find_cache(chosen)
    if os.environ.get(TRITON) and why_unusable(Path(os.environ[TRITON])):
        del os.environ[TRITON]
    os.environ.pop(VARIABLE, None)
    if cache.scratch is not None:
        _ours = (str(cache.scratch), chosen)
        os.environ[VARIABLE] = str(cache.scratch)
    return cache


def surroundings() -> tuple[str, ...]:
    """What the directories depend on; the second is the directory that the user has chosen for torch, or ""."""
    value = os.environ.get(VARIABLE, "")
    chosen = _ours[1] if value == _ours[0] else value
    homes = (os.environ.get(name, "") for name in ("XDG_CACHE_HOME", "HOME"))
    return str(os.geteuid()), chosen, tempfile.gettempdir(), *homes


def find_cache(chosen: str) -> Cache:
    """Make the directories: torch's where the user has chosen, else beside the kept steps, else a temporary one."""
    kept, problem = None, None
    try:
        kept = cache_directory() / "steps"
        make_private(kept)
    except OSError as error:
        kept, problem = None, reason(error)
    places = [Path(os.path.abspath(chosen))] if chosen else []
    places += [kept.with_name("torch")] if kept else []
    for place in places:
        unusable = why_unusable(place)
        if unusable is None:
            return Cache(kept, place, problem)
        problem = problem or unusable
    return temporary_cache(kept, problem)


def temporary_cache(kept: Path | None, problem: str | None) -> Cache:
    """A cache whose torch files are in a temporary directory, because of a problem elsewhere."""
    scratch, missing = private_scratch()
    return Cache(kept, scratch, missing or problem, private=True)


def without_scratch(problem: str) -> Cache:
    """Move torch's files to a temporary directory for the rest of this process, since it can't compile elsewhere."""
    _caches[surroundings()] = temporary_cache(open_cache().kept, problem)
    return open_cache()


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/bnexp, or ~/.cache/bnexp. Raises OSError where there is no home directory."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # the XDG specification says to ignore a relative one
        home = os.path.expanduser("~/.cache")
    if not os.path.isabs(home):
        raise OSError(0, "there is no home directory", home)
    return Path(os.path.abspath(home), "bnexp")


@cache
def private_scratch() -> tuple[Path | None, str | None]:
    """A new directory, which is removed when this process ends, and None; or None and the reason."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="bnexp-")).absolute()
    except OSError as error:
        return None, reason(error)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    problem = why_unusable(folder)
    return (None, problem) if problem else (folder, None)


def remove_scratch(cache: Cache) -> None:
    """Remove torch's files, of which some are damaged. A directory that the user has chosen is left alone."""
    if cache.kept is None or cache.scratch != cache.kept.with_name("torch"):
        return
    with suppress(OSError), tempfile.TemporaryDirectory(dir=cache.scratch.parent) as away:
        cache.scratch.rename(Path(away, cache.scratch.name))  # in one step: other processes may be using it
        make_private(cache.scratch)


# ---- who else can write there


def make_private(path: Path) -> None:
    """Make a directory that the user alone can use, where it is missing. Raises UnsafeError where another user could
    write into it, and OSError where the user can't.
    """
    missing = [part for part in (path, *path.parents) if not os.path.lexists(part)]
    check_owners(path if not missing else missing[-1].parent, last=not missing)
    for part in reversed(missing):
        with suppress(FileExistsError):  # another process of the user's made it, or it is checked below
            part.mkdir(mode=0o700)
    check_owners(path)
    with tempfile.TemporaryFile(dir=path) as file:
        file.write(b"0" * 4096)


def check_owners(path: Path, last: bool = True) -> None:
    """Check that a directory and all above it, along the path and along its links, belong to the user or root and can't
    be written to by others. Above the last one, root's directories with the sticky bit, like /tmp, are safe too: there
    others can't replace what isn't theirs. Raises UnsafeError.
    """
    os.stat(path)  # raises OSError for links in a circle
    for part in steps_to(path):
        status = part.lstat()
        if status.st_uid not in (0, os.geteuid()):
            raise UnsafeError(0, "belongs to another user", str(part))
        if stat.S_ISLNK(status.st_mode):
            continue
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        sticky = status.st_uid == 0 and status.st_mode & stat.S_ISVTX and not (last and part == path)
        if shared and not sticky:
            raise UnsafeError(0, "can be written to by other users", str(part))


def steps_to(path: Path) -> Iterator[Path]:
    """Each directory and link on the way to a path, and on the way to the target of each link."""
    for part in (*reversed(path.parents), path):
        yield part
        if part.is_symlink():
            yield from steps_to(part.parent / os.readlink(part))


def why_unusable(path: Path) -> str | None:
    """Why torch can't keep its files there, or None."""
    try:
        if shlex.split(str(path)) != [str(path)]:
            return f"{path}: torch can't compile in a path with spaces or quotes"
        make_private(path)
        if os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
            return f"{path}: nothing there can be executed (noexec)"
        if shutil.disk_usage(path).free < ROOM:
            return f"{path}: less than {ROOM // 2**20} MiB are free on disk"
    except ValueError:  # an unclosed quote
        return f"{path}: torch can't compile in a path with spaces or quotes"
    except OSError as error:
        return reason(error)
    return None


def reason(error: OSError) -> str:
    """The file and the error of the system, for a message."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


# ---- files


def read_kept(path: Path) -> bytes | None:
    """Read a file of `write_kept`; None where it is not whole, no regular file, or another user's. Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            return None
        digest, content = file.read(DIGEST), file.read()
    return content if digest_of(path, content) == digest else None


def write_kept(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. Raises OSError."""
    handle, beside = tempfile.mkstemp(dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(digest_of(path, content) + content)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def digest_of(path: Path, content: bytes) -> bytes:
    """SHA-256 of a kept file's name and content: under another name the same content is not valid."""
    return hashlib.sha256(path.name.encode() + content).digest()
