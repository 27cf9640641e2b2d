"""Downloads archives of data sets, with resume and checksum.

The server is not trusted: one that is too slow, sends more than it declared, sends a web page in place of the file or
redirects to another host is refused.  An unfinished download is kept in ``NAME.part``; the file gets its final name
only once length and checksum are right.
"""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from detection.data.cards import Card
from detection.data.unpack import free_bytes, is_page, problem_of_path

__all__ = ["Archive", "Download", "Progress", "fetch", "read_downloads"]

Progress = Callable[[int, int | None], None]  # bytes so far, total bytes or None if unknown

_CHUNK = 1 << 20  # bytes of one read
_TIMEOUT = 60.0  # seconds without a byte before a connection counts as dropped
_SLOWEST = 1024  # bytes per second, averaged over _TIMEOUT; a slower connection counts as dropped
_UNDECLARED = 16 << 30  # limit in bytes for a file whose length the server does not declare
_DROPPED = (URLError, ConnectionError, TimeoutError, HTTPException, ssl.SSLError)


@dataclass(frozen=True, slots=True)
class Archive:
    """A file on a web server."""

    url: str
    md5: str | None = None  # 32 hexadecimal digits; without it only the length is checked

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or self.name in ("", ".", ".."):
            raise ValueError(f"an archive needs an http(s) url that ends in a file name, got {self.url!r}")
        if self.md5 is not None and not re.fullmatch("[0-9a-f]{32}", self.md5):
            raise ValueError(f"md5 of {self.url} takes 32 lower-case hexadecimal digits, got {self.md5!r}")

    @property
    def name(self) -> str:
        """The file name at the end of the url, without any folder."""
        return re.split(r"[/\\]", unquote(urlsplit(self.url).path))[-1]


@dataclass(frozen=True, slots=True)
class Download:
    """One entry of a card's ``download`` list."""

    archive: Archive
    into: str  # folder to unpack in, relative to the data root

    def __post_init__(self) -> None:
        if problem := problem_of_path(self.into, symlinks=set()):
            raise ValueError(f"'into: {self.into}' of {self.archive.url} {problem}; name a folder below the data root")


def read_downloads(card: Card) -> list[Download]:
    """Returns the ``download`` list of ``card``.

    Raises:
        ValueError: the card has no such list (the message holds its ``source`` text), or an entry is wrong.
    """
    if not card.download:
        source = card.source.strip() or "the card does not say where the data comes from"
        raise ValueError(f"card {card.name!r} lists no archives to download; its source: {source}")
    downloads = []
    for entry in card.download:
        if "url" not in entry or entry.keys() - {"url", "md5", "into"}:
            raise ValueError(f"card {card.name!r}: a download entry is {{url:, md5:, into:}}, got {entry!r}")
        downloads.append(Download(Archive(entry["url"], entry.get("md5")), entry.get("into", ".")))
    return downloads


def fetch(
    archive: Archive, folder: Path, *, progress: Progress | None = None, attempts: int = 5, wait: float = 1.0
) -> Path:
    """Downloads the archive to ``folder``, unless it is there with the right checksum, and returns its path.

    An interrupted download resumes where it stopped, within this call and in later ones.

    Args:
        archive: what to download.
        folder: target folder, created if missing.
        progress: called after each chunk.
        attempts: number of connections before giving up.
        wait: seconds before the second attempt; doubles with each further one.

    Raises:
        ValueError: the server refuses the url, sends a web page or redirects to a host that the card does not name, the
            disk is too small, or the checksum is wrong.
        ConnectionError: every attempt was dropped or too slow; the bytes received so far are kept.
    """
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    if path.is_file() and archive.md5 in (None, _md5(path)):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        try:
            if _transfer(archive.url, part, progress or _ignore):
                break
        except _DROPPED as error:
            reason = str(error)
        else:
            reason = "the connection ended early"
    else:
        size = part.stat().st_size if part.exists() else 0
        raise ConnectionError(
            f"{archive.url}: gave up after {attempts} attempt{'s' * (attempts > 1)} with {size} bytes in {part} "
            f"({reason}); "
            "run the same command again to resume"
        )
    _check_md5(archive, part)
    return part.replace(path)


def _transfer(url: str, part: Path, progress: Progress) -> bool:
    """Appends the bytes of one connection to ``part``; returns true if the file is complete."""
    offset = part.stat().st_size if part.exists() else 0
    try:
        response = _open(_request(url, offset))
    except HTTPError as error:
        with error:
            if error.code == 416 and offset:
                return _settle_unsatisfied_range(error.headers.get("Content-Range"), part, offset)
            if error.code >= 500 or error.code in (408, 429):  # a fault of the server that may be temporary
                raise
            raise ValueError(
                f"{url}: the server answered {error.code} {error.reason}; "
                "the file may have moved, so look for its new address"
            ) from error
    with response:
        start, total = _range_of(response)
        if start not in (0, offset):
            raise ConnectionError(f"asked for bytes from {offset}, got bytes from {start}")
        limit = _limit(url, part, start, total)
        with part.open("ab" if start else "wb") as file:
            done = start
            for chunk in _chunks(response):
                if done == 0 and is_page(chunk):
                    raise ValueError(
                        f"{url}: the server sent a page in place of the file; open the address in a browser: "
                        "it may ask for a login, or the file may have moved"
                    )
                done += len(chunk)
                if done > limit:
                    raise ValueError(f"{url}: the server sends more than {limit} bytes; nothing more was taken")
                file.write(chunk)
                progress(done, total)
    return total is None or done == total


def _open(request: Request) -> HTTPResponse:
    """Returns the response once its headers are read; _TIMEOUT covers all of them, however slowly they arrive."""
    answers, errors = list[HTTPResponse](), list[Exception]()

    def ask() -> None:
        try:
            answers.append(build_opener(_Redirects).open(request, timeout=_TIMEOUT))
        except Exception as error:  # noqa: BLE001  # raised again where it is waited for
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # abandoned if the server is too slow
    thread.start()
    thread.join(_TIMEOUT)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer in {_TIMEOUT:.0f} s")
    return answers[0]


class _Redirects(HTTPRedirectHandler):
    """Follows redirects from https to https, and from http within the same host; any other raises ValueError."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        secure = new.scheme == "https" or (new.scheme, old.scheme) == ("http", "http")
        if not secure or (old.scheme == "http" and new.hostname != old.hostname):
            fp.close()
            raise ValueError(
                f"{req.full_url}: the server redirects to {newurl}, another host or protocol; nothing was downloaded. "
                "If that is the file's new address, put it into the card"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _limit(url: str, part: Path, start: int, total: int | None) -> int:
    """Returns the most bytes that the file may have.

    Raises:
        ValueError: the disk has less space than the declared length.
    """
    free = start + free_bytes(part.parent)
    if total is not None and total > free:
        raise ValueError(f"{url}: the file has {total} bytes, {part.parent} has {free} free; nothing was downloaded")
    return min(free, _UNDECLARED) if total is None else total


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """Yields bytes as they arrive.

    Raises:
        TimeoutError: fewer than _SLOWEST bytes per second in _TIMEOUT.
    """
    since, came = time.monotonic(), 0
    while chunk := response.read1(_CHUNK):  # read1 returns the bytes received before a connection broke
        yield chunk
        came += len(chunk)
        if (seconds := time.monotonic() - since) > _TIMEOUT:
            if came < _SLOWEST * seconds:
                raise TimeoutError(f"{came} bytes came in {seconds:.0f} s")
            since, came = time.monotonic(), 0


def _request(url: str, offset: int) -> Request:
    return Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})


def _range_of(response: HTTPResponse) -> tuple[int, int | None]:
    """Returns the position of the first byte of ``response``, and the length of the whole file if declared."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None:
            raise ConnectionError(f"a partial answer with Content-Range {response.headers.get('Content-Range')!r}")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")  # a server without range requests sends the whole file again
    return 0, None if length is None else int(length)


def _settle_unsatisfied_range(content_range: str | None, part: Path, offset: int) -> bool:
    """Returns true if ``part`` already holds the whole file; otherwise deletes it, as it belongs to another file."""
    if content_range == f"bytes */{offset}":
        return True
    part.unlink()
    return False


def _check_md5(archive: Archive, part: Path) -> None:
    if archive.md5 is None or (actual := _md5(part)) == archive.md5:
        return
    part.unlink()
    raise ValueError(
        f"{archive.name}: md5 is {actual}, expected {archive.md5}; the download was deleted: run the command again, "
        f"and if it fails again compare the checksum expected with the one published for {archive.url}"
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _ignore(done: int, total: int | None) -> None:
    """Ignores progress."""
