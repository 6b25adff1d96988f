"""Where compiled code is kept: in a directory of the user's, since whatever is found there is executed."""

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

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # where torch keeps what it compiled; processes that start from here inherit it
TRITON = "TRITON_CACHE_DIR"
ROOM = 512 * 2**20  # bytes free on disk for torch's files, of which the precompiled headers are 280 MB
DIGEST = 32  # bytes of a SHA-256


@dataclass(frozen=True)
class Cache:
    """Directories for compiled code. `kept`: of compiled steps, or None, where nothing is kept; `scratch`: torch's own,
    or None, where nothing can be compiled; `problem`: why one of them is not where it should be. `private`: torch's is
    a temporary one, which this process will remove.
    """

    kept: Path | None
    scratch: Path | None
    problem: str | None
    private: bool = False


class UnsafeError(OSError):
    """Somebody else could change what is read there."""


_caches: dict[tuple[str, ...], Cache] = {}
_ours = ("", "")  # what this process has put into the variable, and what was there before: the user's choice


def open_cache() -> Cache:
    """Find the directories, make them where they are missing, and point torch to its own."""
    global _ours  # noqa: PLW0603 - as the environment, once a process
    where = surroundings()
    found = _caches[where] = _caches.get(where) or find_cache(where[1])
    for name in (VARIABLE, TRITON):
        if os.environ.get(name) and (name == VARIABLE or why_unusable(Path(os.environ[name]))):
            del os.environ[name]
    if found.scratch is not None:
        _ours = (str(found.scratch), where[1])
        os.environ[VARIABLE] = _ours[0]
    return found


def surroundings() -> tuple[str, ...]:
    """What the directories depend on. The second: the user's own choice for torch's."""
    given = os.environ.get(VARIABLE, "")
    names = ("XDG_CACHE_HOME", "HOME")
    chosen = _ours[1] if given == _ours[0] else given
    return str(os.geteuid()), chosen, tempfile.gettempdir(), *(os.environ.get(name, "") for name in names)


def find_cache(chosen: str) -> Cache:
    kept, problem = None, None
    try:
        kept = cache_directory() / "steps"
        make_private(kept)
    except OSError as error:
        kept, problem = None, reason(error)
    places = [Path(os.path.abspath(chosen))] if chosen else []
    for place in [*places, kept.with_name("torch")] if kept else places:
        why = why_unusable(place)
        if why is None:
            return Cache(kept, place, problem)
        problem = problem or why
    return temporary_cache(kept, problem)


def temporary_cache(kept: Path | None, problem: str | None) -> Cache:
    scratch, missing = private_scratch()
    return Cache(kept, scratch, missing or problem, private=True)


def without_scratch(problem: str) -> Cache:
    """From now on torch's files go into a private temporary directory, since where they are torch can't compile."""
    where, before = surroundings(), open_cache()
    _caches[where] = temporary_cache(before.kept, problem)
    return open_cache()


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/bnexp, or ~/.cache/bnexp. Raises OSError where there is neither."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # such a one is to be ignored, says the specification
        home = os.path.expanduser("~/.cache")
    if not os.path.isabs(home):
        raise OSError(0, "there is no home directory", home)
    return Path(os.path.abspath(home), "bnexp")


@cache
def private_scratch() -> tuple[Path | None, str | None]:
    """A new directory that is removed when this process ends, or why there is none."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="bnexp-")).absolute()
    except OSError as error:
        return None, reason(error)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    problem = why_unusable(folder)
    return (None, problem) if problem else (folder, None)


def remove_scratch(found: Cache) -> None:
    """Of torch's files some are damaged, and would be taken again. A directory that the user chose is left alone."""
    if found.kept is None or found.scratch != found.kept.with_name("torch"):
        return
    with suppress(OSError), tempfile.TemporaryDirectory(dir=found.scratch.parent) as away:
        found.scratch.rename(Path(away, found.scratch.name))  # at once: other processes may be using it
        make_private(found.scratch)


# ---- who else can write there


def make_private(path: Path) -> None:
    """Make a directory that the user alone can use, where it isn't there. Raises OSError where somebody else could put
    something into it, or nothing can be written there.
    """
    missing = [part for part in (path, *path.parents) if not os.path.lexists(part)]
    check_owners(path if not missing else missing[-1].parent, last=not missing)
    for part in reversed(missing):
        with suppress(FileExistsError):  # another process of the user's, or it is looked at now
            part.mkdir(mode=0o700)
    check_owners(path)
    with tempfile.TemporaryFile(dir=path) as file:
        file.write(b"0" * 4096)


def check_owners(path: Path, last: bool = True) -> None:
    """Raises UnsafeError unless this directory and all that are above it, as the path names them and where its links
    lead, belong to the user or root, and nobody else can write there; in a parent of root's with the sticky bit others
    may write, since there they can't replace what isn't theirs.
    """
    os.stat(path)  # links that lead in a circle end here
    for part in steps_to(path):
        found = part.lstat()
        if found.st_uid not in (0, os.geteuid()):
            raise UnsafeError(0, "belongs to another user", str(part))
        if stat.S_ISLNK(found.st_mode):
            continue
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        sticky = found.st_uid == 0 and found.st_mode & stat.S_ISVTX and not (last and part == path)
        if shared and not sticky:
            raise UnsafeError(0, "can be written to by other users", str(part))


def steps_to(path: Path) -> Iterator[Path]:
    """Each directory and link on the way to a path, those included that lead to a link's target."""
    for part in (*reversed(path.parents), path):
        yield part
        if part.is_symlink():
            yield from steps_to(part.parent / os.readlink(part))


def why_unusable(path: Path) -> str | None:
    """Why torch can't have its files there, or None."""
    try:
        if shlex.split(str(path)) != [str(path)]:
            return f"{path}: torch can't compile in a path with spaces or quotes"
        make_private(path)
        if os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
            return f"{path}: nothing there can be executed (noexec)"
        if shutil.disk_usage(path).free < ROOM:
            return f"{path}: less than {ROOM // 2**20} MiB are free on disk"
    except ValueError:  # a quote without its other one
        return f"{path}: torch can't compile in a path with spaces or quotes"
    except OSError as error:
        return reason(error)
    return None


def reason(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


# ---- files


def read_kept(path: Path) -> bytes | None:
    """What was kept under this name; None where it isn't whole, or another user's. Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            return None
        digest, content = file.read(DIGEST), file.read()
    return content if digest_of(path, content) == digest else None


def write_kept(path: Path, content: bytes) -> None:
    """Whole or not at all. Raises OSError."""
    handle, beside = tempfile.mkstemp(dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(digest_of(path, content) + content)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def digest_of(path: Path, content: bytes) -> bytes:
    """Of the content and of its name: what was kept under another one is something else."""
    return hashlib.sha256(path.name.encode() + content).digest()
