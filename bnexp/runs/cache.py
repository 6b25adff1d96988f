"""The directories for compiled code. The files in them are executed, so only the user may be able to write to them."""

import atexit
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bnexp.runs.files import reason, replaced

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps what it compiled; child processes inherit it
TRITON = "TRITON_CACHE_DIR"
ROOM = 512 * 2**20  # bytes that have to be free for torch's files; precompiled headers take 280 MB
DIGEST = 32  # bytes of a SHA-256
SPLITTING = " \t\r\n'\"\\"  # characters at which a compiler's command line would be split or changed


@dataclass(frozen=True)
class Cache:
    """Directories for compiled code.

    kept: the directory of bnexp's compiled steps; None where they can't be stored. scratch: the directory of the files
    of torch's compiler; None where nothing can be compiled. problem: why one is missing or elsewhere than usual, else
    None. private: scratch is a temporary directory, which this process removes when it ends.
    """

    kept: Path | None
    scratch: Path | None
    problem: str | None
    private: bool = False


class UnsafeError(OSError):
    """The error raised where another user could change the files in a directory."""


_caches: dict[tuple[str, ...], Cache] = {}
_ours = ("", "")  # VARIABLE as this process has set it, and as the user had set it


def open_cache() -> Cache:
    """Return the `Cache` of this process, whose directories are created if they are missing.

    It also sets the environment variable TORCHINDUCTOR_CACHE_DIR to `Cache.scratch`, or unsets it if that is None, and
    unsets TRITON_CACHE_DIR if its directory can't be used. The result is remembered for each value of `surroundings()`.
    """
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
    """Return the values that the directories depend on; the second is the user's directory for torch, or ""."""
    value = os.environ.get(VARIABLE, "")
    chosen = _ours[1] if value == _ours[0] else value
    homes = (os.environ.get(name, "") for name in ("XDG_CACHE_HOME", "HOME"))
    return str(os.geteuid()), chosen, tempfile.gettempdir(), *homes


def find_cache(chosen: str) -> Cache:
    """Create the directories: bnexp's in the user's cache directory, and torch's in the first place that can be used.

    The places are the directory that the user has chosen, one next to bnexp's, and a temporary one. chosen: "" for
    none.
    """
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
    """Make a cache with a temporary directory for torch's files, if one can be used. problem: why not another."""
    scratch, missing = private_scratch()
    return Cache(kept, scratch, missing or problem, private=True)


def without_scratch(problem: str) -> Cache:
    """Give torch a temporary directory for the rest of this process, because of a problem with the one it had.

    Return the new cache. The files of the earlier directory stay there.
    """
    _caches[surroundings()] = temporary_cache(open_cache().kept, problem)
    return open_cache()


def cache_directory() -> Path:
    """Return $XDG_CACHE_HOME/bnexp, or ~/.cache/bnexp where that is unset or relative. The directory may not exist.

    Raises OSError where ~ is needed and the user has no home directory.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # the XDG specification says to ignore a relative one
        home = os.path.expanduser("~/.cache")
    if not os.path.isabs(home):
        raise OSError(0, "there is no home directory", home)
    return Path(os.path.abspath(home), "bnexp")


@cache
def private_scratch() -> tuple[Path | None, str | None]:
    """Create a temporary directory, once in a process, and return it and None. It is removed when the process ends.

    Where it can't be created or torch can't use it, return None and the reason.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="bnexp-")).absolute()
    except OSError as error:
        return None, reason(error)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    problem = why_unusable(folder)
    return (None, problem) if problem else (folder, None)


def remove_scratch(cache: Cache) -> None:
    """Remove torch's files, some of which are damaged, if they are in bnexp's own directory for them.

    A temporary directory and one that the user has chosen are left as they are. Errors of the system are ignored.
    """
    if cache.kept is None or cache.scratch != cache.kept.with_name("torch"):
        return
    with suppress(OSError), tempfile.TemporaryDirectory(dir=cache.scratch.parent) as away:
        cache.scratch.rename(Path(away, cache.scratch.name))  # in one step: other processes may be using it
        make_private(cache.scratch)


# ---- who else can write there


def make_private(path: Path) -> None:
    """Create a directory, where it is missing, that only the user can write to, and test that 4 KiB can be written.

    Raises UnsafeError where another user could write to it or replace it, and OSError where this user can't write.
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
    """Check that no other user, a group included, can write to a directory, to one above it, or to one that a link in
    its path leads through.

    Each directory and each link has to belong to this user or root. A directory of root with the sticky bit, like /tmp,
    is allowed, since others can't replace this user's files there; `path` itself only if `last` is false. Raises
    UnsafeError where the check fails, and OSError for a missing path or links in a circle.
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
    """Yield each directory and link on the way to a path, and on the way to the target of each link."""
    for part in (*reversed(path.parents), path):
        yield part
        if part.is_symlink():
            yield from steps_to(part.parent / os.readlink(part))


def why_unusable(path: Path) -> str | None:
    """Create a directory for torch's files where it is missing; return why torch can't use it, or None."""
    try:
        if not set(SPLITTING).isdisjoint(str(path)):
            return f"{path}: torch can't compile in a path with spaces or quotes"
        make_private(path)
        if os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
            return f"{path}: nothing there can be executed (noexec)"
        if shutil.disk_usage(path).free < ROOM:
            return f"{path}: less than {ROOM // 2**20} MiB are free on disk"
    except OSError as error:
        return reason(error)
    return None


# ---- files


def read_kept(path: Path) -> bytes | None:
    """Return the content of a file that `write_kept` wrote.

    Return None where it is damaged, a pipe or a device, or owned by another user than this one and root. Raises OSError
    where it is missing, a link or a directory, or can't be read.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            return None
        digest, content = file.read(DIGEST), file.read()
    return content if digest_of(path, content) == digest else None


def write_kept(path: Path, content: bytes) -> None:
    """Write a file with the digest of its content in front, whole or not at all. Raises OSError if that fails."""
    with replaced(path) as beside:
        beside.write_bytes(digest_of(path, content) + content)


def digest_of(path: Path, content: bytes) -> bytes:
    """Return the SHA-256 of a file's name and content, so that the content is not valid under another name."""
    return hashlib.sha256(path.name.encode() + content).digest()
