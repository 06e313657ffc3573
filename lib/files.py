"""Files that appear under their name complete, or not at all, whenever the process is killed."""
import fcntl
import json
import os
import re
import shutil
import time
from contextlib import contextmanager, suppress

from lib.cli import check
from lib.distributed import barrier, rank

# In JSON, half of a surrogate pair becomes its escape sequence.
TEXT = {"encoding": "utf-8", "errors": "backslashreplace"}
locks = {}  # {folder that this process writes into: its descriptor}


def lock(folder):
    """Keep other jobs on this machine from writing into a folder, until this process ends. Raises
    ValueError if one writes there."""
    folder = os.path.realpath(folder)
    if rank > 0 or folder in locks:
        return
    os.makedirs(folder, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder} is in use by another job: wait, or choose another") from None
    except OSError:
        pass  # a file system without locks
    locks[folder] = descriptor


@contextmanager
def alone(folder):
    """Wait until no other job on this machine is in such a block for this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # a file system may have no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def files_in(folder, pattern):
    """Sorted paths of what lies in a folder under a name that fully matches the regular expression
    `pattern`. The folder's own path is no pattern; it may have any characters."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [os.path.join(folder, name) for name in sorted(names) if re.fullmatch(pattern, name)]


def remove(path):
    """Remove a file, a folder with what it holds, or a link without what it points to."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def read_jsonl(path, keys):
    """The objects of a .jsonl file, in which lines may be empty. Raises ValueError, naming file and
    line, if one lacks a key."""
    check(os.path.isfile(path), f"{path}: no such file")
    rows = []
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as e:
                raise ValueError(f"{path}, line {number}: not valid JSON: {e}") from None
            for key in keys:
                check(isinstance(row, dict) and key in row,
                      f"{path}, line {number}: no {key!r} in it")
            rows.append(row)
    check(rows, f"{path}: empty")
    return rows


def read_json(path):
    """The contents of a .json file, {} if there is none. Raises ValueError with one line."""
    if not os.path.isfile(path):
        return {}
    with open(path) as f:
        try:
            return json.load(f)
        except ValueError as e:
            raise ValueError(f"{path}: not valid JSON: {e}") from None


def write_jsonl(path, rows):
    """Write one JSON object per line, atomically."""
    with atomic_file(path) as f:
        f.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


@contextmanager
def atomic_file(path, mode="w"):
    """Open a temporary file for writing; it takes the name `path` when the block ends well."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.tmp"
    try:
        with open(temporary, mode, **({} if "b" in mode else TEXT)) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        fsync(os.path.dirname(path))
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)


@contextmanager
def atomic_dir(path):
    """Yield a temporary folder that takes the name `path`, for an older one, when the block ends
    well. All ranks call it together and may write into the folder; they go on when it has its name.
    """
    temporary = f"{path}.tmp"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        os.makedirs(temporary)
    barrier()
    deadline = time.time() + 60  # another machine may see the folder late on a network file system
    while not os.path.isdir(temporary):
        check(time.time() < deadline, f"{temporary} is not visible to rank {rank}: it must be on a "
              "file system that all machines share")
        time.sleep(1)
    try:
        yield temporary
        barrier()
        if rank == 0:
            for folder, _, files in os.walk(temporary):
                for name in ("", *files):  # "": the folder itself
                    fsync(os.path.join(folder, name))
            remove(path)
            os.rename(temporary, path)
            fsync(os.path.dirname(path))
        barrier()
    finally:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)


def fsync(path):
    """Bring a file, or a folder's entries, to the disk. Otherwise a power cut may undo a rename."""
    descriptor = os.open(path or ".", os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
