"""Files that commands write: whole or not at all, and never over what they read."""

import os
import stat
import tempfile
from pathlib import Path

from nexus.core.errors import DocumentError


def check_writable(path: Path, *inputs: Path | None) -> None:
    """Raise DocumentError, before work is done for it, where ``path`` cannot be written or is one
    of ``inputs``, by whatever name; an input that is None is none.

    A device or a pipe can be, a disk cannot.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        _check_access(path, _target(path).parent)
        return
    except OSError as error:  # a loop of links, a file in the place of a folder
        raise DocumentError(f"{path}: {error.strerror or error}") from error
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        _check_access(path, path)
    elif stat.S_ISREG(mode):
        for each in inputs:
            if each is not None and each.exists() and each.samefile(path):
                raise DocumentError(f"{path} would overwrite {each}, which Nexus reads")
        _check_access(path, path, _target(path).parent)
    else:
        raise DocumentError(f"{path}: Is {'a directory' if stat.S_ISDIR(mode) else 'no file'}")


def make_folder(path: Path) -> Path:
    """The folder ``path``, made if it is not there; raises DocumentError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror or error}") from error
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds all of it or what it held before.

    A link's target is written, not the link, and a device or a pipe is written to. Raises
    DocumentError.
    """
    check_writable(path)
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            _replace(_target(path), text)
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror or error}") from error


def _replace(target: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(target.stat().st_mode & 0o777 if target.exists() else 0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink()
        raise


def _target(path: Path) -> Path:
    """What a link leads to, be it there or not."""
    return Path(os.path.realpath(path))


def _check_access(path: Path, *needed: Path) -> None:
    for each in needed:
        if not each.exists():
            raise DocumentError(f"{path}: no folder {each}")
        if not os.access(each, os.W_OK):
            raise DocumentError(f"{path}: Permission denied")
