"""Mirrors detection/data/download.py; the server runs on 127.0.0.1."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request

import pytest
import yaml

from detection.data import download
from detection.data.cards import Card, load_card
from detection.data.download import Archive, fetch, read_downloads, unpack

DATASETS = Path(__file__).parents[3] / "datasets"
CONTENT = bytes(range(256)) * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()


class FileServer(ThreadingHTTPServer):
    """Serves CONTENT at every path but /missing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges = True
        self.cuts: list[int] = []  # bytes after which the next connections break
        self.statuses: list[int] = []  # answers to the next requests, in place of the file
        self.requests: list[str | None] = []  # their Range headers
        self.sent = 0  # bytes of the file, over all connections
        self.redirects: list[str] = []  # where the next requests are led to
        self.drips = ""  # "head" or "body": a letter every 10 ms, without end
        self.silent = False  # about the length

    def archive(self, md5: str | None = MD5, name: str = "file.bin") -> Archive:
        return Archive(f"http://127.0.0.1:{self.server_address[1]}/some/folder/{name}?version=1", md5)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, FileServer)
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        if server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects.pop(0))
            self.end_headers()
            return
        if server.drips:
            self.drip(b"HTTP/1.0 200 OK\r\nX: " if server.drips == "head" else b"HTTP/1.0 200 OK\r\n\r\n")
            return
        content = server.content
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if not server.silent:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cuts:
            body = body[: server.cuts.pop(0)]
            self.close_connection = True
        server.sent += len(body)  # first: the client may be done before this thread goes on
        self.wfile.write(body)

    def drip(self, head: bytes) -> None:
        self.wfile.write(head)
        with suppress(OSError):  # the client has gone
            for _ in range(1000):
                self.wfile.write(b"x")
                time.sleep(0.01)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test output clean."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


# fetch


@pytest.mark.parametrize("md5", [MD5, None])
def test_downloads_to_the_name_in_the_url_and_reports_progress(
    server: FileServer, tmp_path: Path, md5: str | None
) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch(server.archive(md5), tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "new" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert files_below(tmp_path) == ["new/file.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_cut_connection_goes_on_without_sending_bytes_twice(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000]
    path = fetch(server.archive(), tmp_path, wait=0)
    assert path.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]
    assert server.sent == len(CONTENT)


def test_a_later_call_goes_on_with_the_part_file(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [70_000]
    with pytest.raises(ConnectionError, match=r"gave up after 1 attempt with 70000 bytes.*run the same command again"):
        fetch(server.archive(), tmp_path, attempts=1)
    assert files_below(tmp_path) == ["file.bin.part"]
    assert fetch(server.archive(), tmp_path).read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_a_server_without_ranges_starts_over(server: FileServer, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [100_000]
    assert fetch(server.archive(), tmp_path, wait=0).read_bytes() == CONTENT
    assert server.sent == len(CONTENT) + 100_000


def test_a_short_file_is_never_taken_for_complete(server: FileServer, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [100_000] * 3
    with pytest.raises(ConnectionError, match="gave up after 3 attempts"):
        fetch(server.archive(md5=None), tmp_path, attempts=3, wait=0)
    assert files_below(tmp_path) == ["file.bin.part"]


def test_a_complete_part_file_only_gets_its_name(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert fetch(server.archive(), tmp_path, wait=0).read_bytes() == CONTENT
    assert server.sent == 0
    assert files_below(tmp_path) == ["file.bin"]


def test_a_part_file_longer_than_the_file_is_dropped(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"stale")
    assert fetch(server.archive(), tmp_path, wait=0).read_bytes() == CONTENT


def test_a_wrong_checksum_deletes_the_download_and_names_both_sums(server: FileServer, tmp_path: Path) -> None:
    expected = "0" * 32
    with pytest.raises(ValueError, match=rf"file\.bin: md5 is {MD5}, expected {expected}.*run the command again"):
        fetch(server.archive(expected), tmp_path)
    assert files_below(tmp_path) == []


def test_an_existing_file_is_not_downloaded_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert fetch(server.archive(), tmp_path) == tmp_path / "file.bin"
    assert server.requests == []


def test_an_existing_file_with_another_checksum_is_replaced(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"damaged")
    assert fetch(server.archive(), tmp_path).read_bytes() == CONTENT


def test_an_empty_file_downloads(server: FileServer, tmp_path: Path) -> None:
    server.content = b""
    assert fetch(server.archive(hashlib.md5(b"").hexdigest()), tmp_path).read_bytes() == b""


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [503]
    assert fetch(server.archive(), tmp_path, wait=0).read_bytes() == CONTENT
    server.statuses = [404]
    with pytest.raises(ValueError, match="answered 404 Not Found; the file may have moved"):
        fetch(server.archive(name="other.bin"), tmp_path, wait=0)
    assert len(server.requests) == 3


@pytest.mark.parametrize("drips", ["head", "body"])
def test_a_server_that_drips_is_left(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drips: str
) -> None:
    monkeypatch.setattr(download, "_TIMEOUT", 0.3)
    server.drips, start = drips, time.monotonic()
    with pytest.raises(ConnectionError, match=r"gave up after 2 attempts.*(no answer in|bytes came in) 0 s"):
        fetch(server.archive(), tmp_path, attempts=2, wait=0)
    assert time.monotonic() - start < 4


def test_a_file_that_never_ends_is_cut(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_UNDECLARED", 100_000)
    server.silent = True
    with pytest.raises(ValueError, match=r"file\.bin\?.*more than 100000 bytes"):
        fetch(server.archive(), tmp_path, wait=0)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 100_000
    monkeypatch.setattr(download, "_UNDECLARED", 1 << 20)
    assert fetch(server.archive(), tmp_path / "other").read_bytes() == CONTENT


def test_a_file_larger_than_the_disk_is_not_begun(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_free_bytes", lambda _: 1000)
    with pytest.raises(ValueError, match=rf"the file has {len(CONTENT)} bytes, .* has 1000 free"):
        fetch(server.archive(), tmp_path, wait=0)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "address",
    ["http://localhost:9/file.bin", "https://localhost:9/file.bin", "ftp://127.0.0.1/file.bin", "file:///etc/passwd"],
)
def test_a_redirect_to_another_host_or_protocol_is_named(server: FileServer, tmp_path: Path, address: str) -> None:
    server.redirects = [address]
    with pytest.raises(ValueError, match=rf"(the server leads to|Redirection to url) .{{0,1}}{re.escape(address)}"):
        fetch(server.archive(), tmp_path, wait=0)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(("new", "allowed"), [("https://b/x", True), ("http://a/x", False), ("http://b/x", False)])
def test_https_is_never_left(new: str, allowed: bool) -> None:
    def follow() -> object:
        return download._Redirects().redirect_request(Request("https://a/x"), io.BytesIO(), 302, "", HTTPMessage(), new)

    if allowed:
        assert isinstance(follow(), Request)
    else:
        with pytest.raises(ValueError, match=re.escape(new)):
            follow()


def test_a_redirect_on_the_same_host_is_followed(server: FileServer, tmp_path: Path) -> None:
    server.redirects = ["/elsewhere/x.bin"]
    assert fetch(server.archive(), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>Log in</title>", b"\n <!-- x -->\n<HTML>moved</HTML>"])
def test_a_page_in_place_of_a_file_is_said(server: FileServer, tmp_path: Path, page: bytes) -> None:
    server.content = page
    with pytest.raises(ValueError, match=r"sent a page in place of the file; open the address in a browser"):
        fetch(server.archive(None), tmp_path, wait=0)
    (tmp_path / "a.zip").write_bytes(page)
    with pytest.raises(ValueError, match=r"a\.zip is neither a tar nor a zip file but a page of the web"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.zip", "http://host/folder/", "http://host/.."])
def test_an_archive_needs_a_web_address_with_a_file_name(url: str) -> None:
    with pytest.raises(ValueError, match="http"):
        Archive(url)


@pytest.mark.parametrize("url", ["http://host/a/%2e%2e%2fevil.zip", "http://host/a/..%5Cevil.zip"])
def test_the_name_of_an_archive_is_never_a_path(url: str) -> None:
    assert Archive(url).name == "evil.zip"


def test_an_md5_has_32_digits() -> None:
    with pytest.raises(ValueError, match="32 lower-case hexadecimal digits, got 'abc'"):
        Archive("http://host/a.zip", "abc")


# unpack


def tar_file(path: Path, *members: tuple[str, bytes, str], compression: str = "gz") -> Path:
    """A tar file of (name, type, link target or text)."""
    with tarfile.open(path, f"w:{compression}") as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
            else:
                info.linkname = text
                info.mode = 0o755
                tar.addfile(info)
    return path


def zip_file(path: Path, *members: tuple[str, int, str]) -> Path:
    """A zip file of (name, Unix mode, text)."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode, text in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name  # as given: the constructor tidies names
            info.external_attr = mode << 16
            archive.writestr(info, text)
    return path


FILE = ("good/a.txt", tarfile.REGTYPE, "text")


@pytest.mark.parametrize(("name", "compression"), [("a.tar", ""), ("a.tar.gz", "gz"), ("a.tgz", "gz")])
def test_a_tar_file_unpacks_with_its_inner_links(tmp_path: Path, name: str, compression: str) -> None:
    members = (
        ("./", tarfile.DIRTYPE, ""),
        ("good", tarfile.DIRTYPE, ""),
        FILE,
        ("other/soft", tarfile.SYMTYPE, "../good/a.txt"),
        ("hard", tarfile.LNKTYPE, "good/a.txt"),
    )
    unpack(tar_file(tmp_path / name, *members, compression=compression), tmp_path / "out")
    assert files_below(tmp_path / "out") == ["good/a.txt", "hard", "other/soft"]
    assert all((tmp_path / "out" / file).read_text() == "text" for file in files_below(tmp_path / "out"))


def test_a_zip_file_unpacks_beside_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")
    unpack(zip_file(tmp_path / "a.zip", ("good/", 0o40755, ""), ("good/a.txt", 0o100644, "text")), tmp_path)
    assert (tmp_path / "good" / "a.txt").read_text() == "text"
    assert (tmp_path / "old.txt").read_text() == "old"


def test_an_empty_archive_unpacks(tmp_path: Path) -> None:
    unpack(zip_file(tmp_path / "a.zip"), tmp_path / "out")
    unpack(tar_file(tmp_path / "a.tgz"), tmp_path / "out")
    assert files_below(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../evil", tarfile.REGTYPE, "x")], "leaves the folder"),
        ([("good/../../evil", tarfile.REGTYPE, "x")], "leaves the folder"),
        ([("/tmp/evil", tarfile.REGTYPE, "x")], "is absolute"),
        ([("C:\\evil", tarfile.REGTYPE, "x")], "is absolute"),
        ([("evil", tarfile.SYMTYPE, "../outside")], "leaves the folder"),
        ([("evil", tarfile.SYMTYPE, "/etc")], "is absolute"),
        ([("evil", tarfile.LNKTYPE, "../outside")], "leaves the folder"),
        ([("evil", tarfile.LNKTYPE, "/etc/passwd")], "is absolute"),
        ([("good/link", tarfile.SYMTYPE, "."), ("good/link/evil", tarfile.SYMTYPE, "..")], "passes through"),
        ([("good/link", tarfile.SYMTYPE, "../b"), ("evil", tarfile.SYMTYPE, "good/link/../..")], "passes through"),
        ([("good/link", tarfile.SYMTYPE, "../b"), ("evil", tarfile.LNKTYPE, "good/link")], "symbolic link"),
        ([("evil", tarfile.CHRTYPE, "")], "is no file"),
        ([("evil", tarfile.FIFOTYPE, "")], "is no file"),
        ([("GOOD/a.TXT", tarfile.REGTYPE, "x")], "differs from 'good/a.txt' in case only"),
        ([("Link", tarfile.SYMTYPE, "b"), ("lINK/evil", tarfile.REGTYPE, "x")], "passes through"),
    ],
)
def test_a_tar_file_that_reaches_outside_writes_nothing(
    tmp_path: Path, members: list[tuple[str, bytes, str]], message: str
) -> None:
    path = tar_file(tmp_path / "bad.tar.gz", FILE, *members)
    with pytest.raises(ValueError, match=rf"bad\.tar\.gz: member {re.escape(repr(members[-1][0]))}.*{message}"):
        unpack(path, tmp_path / "a" / "out")
    assert files_below(tmp_path) == ["bad.tar.gz"]


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("../evil", 0o100644, "leaves the folder"),
        ("good/../../evil", 0o100644, "leaves the folder"),
        ("..\\evil", 0, "leaves the folder"),
        ("/tmp/evil", 0o100644, "is absolute"),
        ("C:/evil", 0, "is absolute"),
        ("evil", stat.S_IFLNK | 0o777, "is no file"),
        ("Good/A.txt", 0o100644, "differs from 'good/a.txt' in case only"),
    ],
)
def test_a_zip_file_that_reaches_outside_writes_nothing(tmp_path: Path, name: str, mode: int, message: str) -> None:
    path = zip_file(tmp_path / "bad.zip", ("good/a.txt", 0o100644, "text"), (name, mode, "../outside"))
    with pytest.raises(ValueError, match=rf"bad\.zip: member {re.escape(repr(name))} {message}"):
        unpack(path, tmp_path / "a" / "out")
    assert files_below(tmp_path) == ["bad.zip"]


def tar_of_two(path: Path) -> Path:
    return tar_file(path / "a.tar.gz", ("first", tarfile.REGTYPE, "x"), FILE)


def zip_of_two(path: Path) -> Path:
    return zip_file(path / "a.zip", ("first", 0o100644, "x"), ("good/a.txt", 0o100644, "text"))


@pytest.mark.parametrize("make", [tar_of_two, zip_of_two])
@pytest.mark.parametrize("linked", ["good", "good/a.txt"])
def test_a_link_that_lies_in_the_folder_already_is_not_followed_outside(
    tmp_path: Path, make: Callable[[Path], Path], linked: str
) -> None:
    link, outside = tmp_path / "out" / linked, tmp_path / "elsewhere"
    link.parent.mkdir(parents=True)
    outside.mkdir()
    link.symlink_to(outside if linked == "good" else outside / "a.txt")
    with pytest.raises(ValueError, match="nothing was unpacked"):
        unpack(make(tmp_path), tmp_path / "out")
    assert files_below(outside) == []
    assert not (tmp_path / "out" / "first").exists()


@pytest.mark.parametrize("make", [tar_of_two, zip_of_two])
def test_links_inside_and_of_the_folder_itself_are_followed(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "real" / "other").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "good").symlink_to("other")
    unpack(make(tmp_path), tmp_path / "out")
    assert (tmp_path / "real" / "other" / "a.txt").read_text() == "text"


@pytest.mark.parametrize("make", [tar_of_two, zip_of_two])
def test_a_pipe_in_the_folder_is_not_opened(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "out" / "good").mkdir(parents=True)
    os.mkfifo(tmp_path / "out" / "good" / "a.txt")
    with pytest.raises(ValueError, match=r"a pipe or device; nothing was unpacked"):
        unpack(make(tmp_path), tmp_path / "out")


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("<html>moved</html>")
    with pytest.raises(ValueError, match=r"page\.zip is neither a tar nor a zip file but a page"):
        unpack(tmp_path / "page.zip", tmp_path / "out")


# cards and the script


@pytest.mark.parametrize("path", sorted(DATASETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_cards_list_archives_with_checksums_or_say_where_the_data_is(path: Path) -> None:
    card = load_card(str(path))
    if card.download:
        without = [entry.archive.url for entry in read_downloads(card) if not entry.archive.md5]
        assert without in ([], ["http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip"])
    else:
        assert card.source
        with pytest.raises(ValueError, match=re.escape(card.source.strip())):
            read_downloads(card)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"md5": MD5}, "a download entry is"),
        ({"url": "http://host/a.zip", "inot": "x"}, "a download entry is"),
        ({"url": "http://host/a.zip", "into": "../x"}, "leaves the folder"),
        ({"url": "http://host/a.zip", "into": "/x"}, "is absolute"),
    ],
)
def test_a_wrong_entry_of_a_card_is_named(entry: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_downloads(Card(name="mine", format="voc", classes=("a",), splits={}, download=(entry,)))


def test_the_command_fetches_and_unpacks_what_a_card_lists(
    resdet: Callable[..., Any], server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = tar_file(tmp_path / "a.tgz", FILE).read_bytes()
    archive = server.archive(hashlib.md5(server.content).hexdigest(), name="a.tgz")
    entry = {"url": archive.url, "md5": archive.md5, "into": "coco/annotations"}
    card = tmp_path / "mine.yaml"
    card.write_text(yaml.safe_dump({"format": "coco", "classes": ["a"], "splits": {}, "download": [entry]}))
    assert resdet("download", card, "--root", tmp_path / "root").status == 0
    monkeypatch.setenv("RESDET_DATA_ROOT", str(tmp_path / "other"))
    assert resdet("download", card).status == 0
    expected = ["archives/a.tgz", "coco/annotations/good/a.txt"]
    assert files_below(tmp_path / "root") == files_below(tmp_path / "other") == expected


def test_a_card_without_archives_says_where_the_data_are(resdet: Callable[..., Any], tmp_path: Path) -> None:
    card = tmp_path / "mine.yaml"
    card.write_text("{format: voc, classes: [a], splits: {}, source: ask the author}\n")
    assert re.search(r"^error: .*lists no archives.*ask the author", resdet("download", card).err)
