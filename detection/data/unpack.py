"""Unpacks archives of data sets safely.

An archive is not trusted.  Every member is checked before the first is written, and none may lie or point outside the
folder.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from stat import S_ISDIR, S_ISREG

__all__ = ["free_bytes", "is_page", "problem_of_path", "unpack"]

_PAGE = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)

# Errors of tarfile and zipfile for damaged files; RuntimeError is for a password or an unknown compression.
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def unpack(archive_path: Path, folder: Path) -> None:
    """Unpacks a tar (plain or compressed) or zip file below ``folder``.

    Raises:
        ValueError: the file is no archive; a member would lie or point outside ``folder``, or is neither file, folder
            nor link; or the disk has too little space.  Nothing is written in these cases.  Also if the archive is
            damaged or can't be written, which may be noticed after some members were written.
    """
    try:
        # A tar file whose last member is an uncompressed zip file also passes as a zip file, so tar is tried first.
        if not archive_path.is_file():
            raise _RefusedError(f"no archive {archive_path}")
        if tarfile.is_tarfile(archive_path):
            _unpack_tar(archive_path, folder)
        elif zipfile.is_zipfile(archive_path):
            _unpack_zip(archive_path, folder)
        else:
            page = " but a page of the web" if is_page(_head(archive_path)) else ""
            raise _RefusedError(f"{archive_path} is neither a tar nor a zip file{page}; delete it, download it again")
    except _RefusedError:
        raise
    except _DAMAGED as error:
        raise ValueError(
            f"{archive_path} can't be unpacked: {error}; if it is damaged, delete it and download it again, "
            f"and look what is in {folder}"
        ) from error


def is_page(content: bytes) -> bool:
    """Returns whether ``content``, the first bytes of a file, are those of a web page."""
    return _PAGE.match(content) is not None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 20)


def _unpack_tar(archive_path: Path, folder: Path) -> None:
    with tarfile.open(archive_path) as tar:
        members = _tar_members(tar)
        _check_members(archive_path, [_from_tar(member) for member in members], folder)
        try:
            for member in members:
                tarfile.data_filter(member, str(folder))  # also follows links that lie in the folder already
        except tarfile.FilterError as error:
            raise _RefusedError(f"{archive_path}: {error}; nothing was unpacked") from error
        folder.mkdir(parents=True, exist_ok=True)
        tar.extractall(folder, members, filter="data")


def _tar_members(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Lists all members and checks headers: tarfile takes a damaged one for the end, and hangs on a negative size."""
    members: list[tarfile.TarInfo] = []
    for member in tar:
        if member.size < 0 or (members and member.offset <= members[-1].offset):
            raise tarfile.ReadError(f"the size of member {member.name!r} is no size")
        members.append(member)
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"damaged after member {members[-1].name if members else None!r}")
    return members


def _unpack_zip(archive_path: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive_path) as archive:
        _check_members(archive_path, [_from_zip(member) for member in archive.infolist()], folder)
        folder.mkdir(parents=True, exist_ok=True)
        archive.extractall(folder)


class _RefusedError(ValueError):
    """An archive that is not unpacked; the message is complete for the user."""


@dataclass(frozen=True, slots=True)
class _Member:
    """The properties of an archive member that decide whether it is safe to write."""

    name: str
    size: int  # bytes when unpacked
    plain: bool = True  # a file or a folder
    symlink_to: str | None = None  # relative to the folder of the member
    hard_link_to: str | None = None  # relative to the root of the archive


def _from_tar(member: tarfile.TarInfo) -> _Member:
    return _Member(
        member.name,
        member.size,
        plain=member.isreg() or member.isdir(),
        symlink_to=member.linkname if member.issym() else None,
        hard_link_to=member.linkname if member.islnk() else None,
    )


def _from_zip(member: zipfile.ZipInfo) -> _Member:
    mode = member.external_attr >> 16  # 0 if the archive was not made on Unix
    # Symbolic links are refused: zipfile would write them as text files that hold the target.
    return _Member(member.filename, member.file_size, plain=mode >> 12 == 0 or S_ISREG(mode) or S_ISDIR(mode))


def _check_members(archive_path: Path, members: Sequence[_Member], folder: Path) -> None:
    symlinks = {_normal(member.name) for member in members if member.symlink_to is not None}
    spelled, folders = dict[str, str](), dict[Path, bool]()
    for member in members:
        other = spelled.setdefault(_normal(member.name), os.path.normpath(member.name))
        problem = _problem_of_member(member, symlinks) or _problem_of_place(folder / member.name, folder, folders)
        if problem is None and other != os.path.normpath(member.name):
            problem = f"differs from {other!r} in case only, so that some systems write one over the other"
        if problem:
            raise _RefusedError(f"{archive_path}: member {member.name!r} {problem}; nothing was unpacked")
    needed, free = sum(member.size for member in members), free_bytes(folder)
    if needed > free:
        raise _RefusedError(
            f"{archive_path}: its files have {needed} bytes, {folder} has {free} free; nothing was unpacked"
        )


def _problem_of_place(path: Path, folder: Path, known: dict[Path, bool]) -> str | None:
    """Returns why an existing ``path``, or a folder above it, must not be written to; ``known`` caches answers."""
    if path.parent not in known:
        known[path.parent] = path.parent.resolve().is_relative_to(folder.resolve())
    if path != folder and not known[path.parent]:
        return f"would be written through a link that lies in {folder}"
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        return f"would be written through the link {path}"
    if path.exists() and not path.is_file() and not path.is_dir():
        return f"would be written into {path}, a pipe or device"
    return None


def free_bytes(folder: Path) -> int:
    """Returns the free bytes on the disk of ``folder``, which need not exist yet."""
    folder = folder.absolute()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def _problem_of_member(member: _Member, symlinks: set[str]) -> str | None:
    """Returns why ``member`` must not be written, or None; ``symlinks`` are the normalized names of symbolic links."""
    if problem := problem_of_path(member.name, symlinks):
        return problem
    if member.symlink_to is not None:
        target = str(PurePosixPath(member.name).parent / member.symlink_to)
    elif member.hard_link_to is not None:
        target = member.hard_link_to
        if _normal(target) in symlinks:  # a copied relative link points elsewhere
            return f"is a hard link to the symbolic link {target!r}"
    else:
        return None if member.plain else "is no file, folder or (in a tar file) link"
    problem = problem_of_path(target, symlinks)
    return f"links to {target!r}, which {problem}" if problem else None


def problem_of_path(path: str, symlinks: set[str]) -> str | None:
    """Returns why ``path`` may leave the folder it starts in, or None."""
    windows = PureWindowsPath(path)
    if windows.drive or windows.root:
        return "is absolute"
    place: list[str] = []
    for depth, part in enumerate(windows.parts, start=1):
        if part != "..":
            place.append(part)
        elif place:
            place.pop()
        else:
            return "leaves the folder"
        if depth < len(windows.parts) and "/".join(place).casefold() in symlinks:
            return f"passes through the symbolic link {'/'.join(place)!r}"
    return None


def _normal(name: str) -> str:
    """Returns ``name`` in one spelling, for file systems that ignore case."""
    return os.path.normpath(PureWindowsPath(name).as_posix()).replace(os.sep, "/").casefold()
