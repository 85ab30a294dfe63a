"""Files and folders that only the service's user can read, independent of the umask."""

import os
from pathlib import Path

_FOLDER, _FILE = 0o700, 0o600


def make_folder(path: Path) -> None:
    """Create the folder *path*, and its parents, if they are missing.

    The permissions of an existing folder are not changed: it is the operator's.

    Raises:
        OSError: the folder cannot be created.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        path.mkdir(_FOLDER)
    except FileExistsError:
        # Another process created the folder first, or *path* is not a folder.
        if not path.is_dir():
            raise
    else:
        path.chmod(_FOLDER)


def open_file(path: Path) -> int:
    """Open the file *path* for reading and writing, and create it if it is missing.

    Returns:
        The file descriptor.

    Raises:
        OSError: the file cannot be created or written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE)
    except FileExistsError:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    os.fchmod(descriptor, _FILE)
    return descriptor


def make_file(path: Path) -> None:
    """Create the empty file *path*, or the target of a link of that name, if it is missing.

    Raises:
        OSError: the file cannot be created.
    """
    target = path.resolve()
    if not target.exists():
        os.close(open_file(target))
