"""Mirrors detection/data/download.py and unpack.py; the server runs on 127.0.0.1."""

import hashlib
import io
import os
import re
import stat
import tarfile
import threading
import time
import zipfile
from contextlib import suppress
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request

import pytest
import yaml

from detection.data import download
from detection.data.cards import Card, load_card
from detection.data.download import Archive, fetch, read_downloads
from detection.data.unpack import unpack

CONTENT = bytes(range(256)) * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()
PAGE = b"\n <!-- x -->\n<HTML>moved</HTML>"


class FileServer(ThreadingHTTPServer):
    """Serves CONTENT at every path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.silent = CONTENT, True, False  # silent about the length
        self.cuts: list[int] = []  # bytes after which the next connections break
        self.statuses: list[int] = []  # answers to the next requests, in place of the file
        self.redirects: list[str] = []  # where the next requests are led to
        self.requests: list[str | None] = []  # their Range headers
        self.sent = 0  # bytes of the file, over all connections
        self.drips = b""  # what comes before a letter every 10 ms, without end

    def archive(self, md5: str | None = MD5, name: str = "file.bin") -> Archive:
        return Archive(f"http://127.0.0.1:{self.server_address[1]}/some/folder/{name}?version=1", md5)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, FileServer)
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        whole, body = len(server.content), server.content[start:]
        if server.statuses:
            self.send_error(server.statuses.pop(0))
        elif server.redirects:
            self.answer(302, Location=server.redirects.pop(0))
        elif server.drips:
            self.drip(server.drips)
        elif start and start >= whole:
            self.answer(416, **{"Content-Range": f"bytes */{whole}", "Content-Length": "0"})
        else:
            headers = {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"} if start else {}
            headers |= {} if server.silent else {"Content-Length": str(len(body))}
            self.answer(206 if start else 200, **headers)
            if server.cuts:
                body, self.close_connection = body[: server.cuts.pop(0)], True
            server.sent += len(body)  # first: the client may be done before this thread goes on
            self.wfile.write(body)

    def answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

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
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


# fetch


def test_downloads_to_the_name_in_the_url_reports_progress_and_keeps_what_is_there(server, tmp_path) -> None:
    seen = []
    path = fetch(server.archive(), tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert (path, path.read_bytes()) == (tmp_path / "new/file.bin", CONTENT)
    assert files_below(tmp_path) == ["new/file.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert (fetch(server.archive(), tmp_path / "new"), len(server.requests)) == (path, 1)
    path.write_bytes(b"damaged")
    assert fetch(server.archive(), tmp_path / "new").read_bytes() == CONTENT
    server.content = b""
    assert fetch(server.archive(None, name="empty"), tmp_path).read_bytes() == b""


def test_a_cut_connection_and_a_later_call_go_on_without_sending_bytes_twice(server, tmp_path) -> None:
    server.cuts = [100_000, 50_000]
    assert fetch(server.archive(), tmp_path / "a", wait=0).read_bytes() == CONTENT
    assert (server.requests, server.sent) == ([None, "bytes=100000-", "bytes=150000-"], len(CONTENT))
    server.cuts = [70_000]
    with pytest.raises(ConnectionError, match=r"1 attempt with 70000 bytes.*run the same command again"):
        fetch(server.archive(), tmp_path, attempts=1)
    assert files_below(tmp_path) == ["a/file.bin", "file.bin.part"]
    assert fetch(server.archive(), tmp_path).read_bytes() == CONTENT
    assert server.sent == 2 * len(CONTENT)
    for number, (stale, sent) in enumerate([(b"", 2), (b"stale", 3)]):  # a complete part file, and a longer one
        (tmp_path / f"part{number}").mkdir()
        (tmp_path / f"part{number}/file.bin.part").write_bytes(CONTENT + stale)
        assert fetch(server.archive(), tmp_path / f"part{number}", wait=0).read_bytes() == CONTENT
        assert server.sent == sent * len(CONTENT)


def test_a_server_without_ranges_starts_over_and_a_short_file_is_never_complete(server, tmp_path) -> None:
    server.ranges, server.cuts = False, [100_000]
    assert fetch(server.archive(), tmp_path / "a", wait=0).read_bytes() == CONTENT
    assert server.sent == len(CONTENT) + 100_000
    server.cuts = [100_000] * 3
    with pytest.raises(ConnectionError, match="3 attempts"):
        fetch(server.archive(md5=None), tmp_path / "b", attempts=3, wait=0)
    assert files_below(tmp_path) == ["a/file.bin", "b/file.bin.part"]


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ({}, rf"file\.bin: md5 is {MD5}, expected {'0' * 32}"),
        ({"statuses": [404]}, "404 Not Found"),
        ({"redirects": ["https://localhost:9/x"]}, "https://localhost:9/x"),
        ({"redirects": ["ftp://127.0.0.1/x"]}, "ftp://127.0.0.1/x"),
        ({"redirects": ["file:///etc/passwd"]}, "file:///etc/passwd"),
        ({"content": PAGE}, "page in place of the file"),
    ],
)
def test_what_is_not_the_file_is_named_and_left_nowhere(server, tmp_path, trouble, message) -> None:
    for name, value in trouble.items():
        setattr(server, name, value)
    with pytest.raises(ValueError, match=message):
        fetch(server.archive(None if trouble else "0" * 32), tmp_path, wait=0)
    assert files_below(tmp_path) == (["file.bin.part"] if "content" in trouble else [])
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again_and_its_own_redirects_are_followed(server, tmp_path) -> None:
    server.statuses, server.redirects = [503], ["/elsewhere/x.bin"]
    assert fetch(server.archive(), tmp_path, wait=0).read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_https_is_never_left() -> None:
    def follow(new):
        return download._Redirects().redirect_request(Request("https://a/x"), io.BytesIO(), 302, "", HTTPMessage(), new)

    assert isinstance(follow("https://b/x"), Request)
    for new in ("http://a/x", "http://b/x"):
        with pytest.raises(ValueError, match=re.escape(new)):
            follow(new)


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\nX: ", b"HTTP/1.0 200 OK\r\n\r\n"])
def test_a_server_that_drips_is_left(server, tmp_path, monkeypatch, head) -> None:
    monkeypatch.setattr(download, "_TIMEOUT", 0.2)
    server.drips, start = head, time.monotonic()
    with pytest.raises(ConnectionError, match=r"2 attempts.*(no answer in|bytes came in) 0 s"):
        fetch(server.archive(), tmp_path, attempts=2, wait=0)
    assert time.monotonic() - start < 4


def test_a_file_larger_than_the_disk_or_without_end_is_cut(server, tmp_path, monkeypatch) -> None:
    server.silent = True
    monkeypatch.setattr(download, "_UNDECLARED", 100_000)
    with pytest.raises(ValueError, match=r"file\.bin\?.*more than 100000 bytes"):
        fetch(server.archive(), tmp_path / "a", wait=0)
    assert sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) <= 100_000
    monkeypatch.setattr(download, "_UNDECLARED", 1 << 20)
    assert fetch(server.archive(), tmp_path / "b").read_bytes() == CONTENT
    server.silent = False
    monkeypatch.setattr(download, "free_bytes", lambda _: 1000)
    with pytest.raises(ValueError, match=rf"{len(CONTENT)} bytes, .* 1000 free"):
        fetch(server.archive(), tmp_path / "c", wait=0)
    assert files_below(tmp_path / "c") == []


def test_an_archive_needs_a_web_address_with_a_file_name_and_an_md5() -> None:
    for url in ("file:///etc/passwd", "ftp://host/a.zip", "http://host/folder/", "http://host/.."):
        with pytest.raises(ValueError, match="http"):
            Archive(url)
    for url in ("http://host/a/%2e%2e%2fevil.zip", "http://host/a/..%5Cevil.zip"):
        assert Archive(url).name == "evil.zip"
    with pytest.raises(ValueError, match="got 'abc'"):
        Archive("http://host/a.zip", "abc")


# unpack

FILE, LINK, HARD = ("good/a.txt", tarfile.REGTYPE, "text"), tarfile.SYMTYPE, tarfile.LNKTYPE


def tar_file(path, *members):
    """A tar file of (name, type, link target or text)."""
    with tarfile.open(path, "w:" if path.suffix == ".tar" else "w:gz") as tar:
        for name, kind, text in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o755
            if kind == tarfile.REGTYPE:
                info.size = len(text)
            else:
                info.linkname = text
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def zip_file(path, *members):
    """A zip file of (name, Unix mode, text)."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, mode, text in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name  # as given: the constructor tidies names
            info.external_attr = mode << 16
            archive.writestr(info, text)
    return path


def test_archives_unpack_with_their_inner_links_beside_what_is_there(tmp_path) -> None:
    folders = (("./", tarfile.DIRTYPE, ""), ("good", tarfile.DIRTYPE, ""))
    links = (("other/soft", LINK, "../good/a.txt"), ("hard", HARD, "good/a.txt"))
    for name in ("a.tar", "a.tar.gz", "a.tgz"):
        out = tmp_path / name.replace(".", "_")
        unpack(tar_file(tmp_path / name, *folders, FILE, *links), out)
        assert files_below(out) == ["good/a.txt", "hard", "other/soft"]
        assert all((out / file).read_text() == "text" for file in files_below(out))
    unpack(zip_file(tmp_path / "a.zip"), tmp_path / "out")
    unpack(tar_file(tmp_path / "a.tgz"), tmp_path / "out")
    assert files_below(tmp_path / "out") == []
    (tmp_path / "out/old.txt").write_text("old")
    unpack(zip_file(tmp_path / "a.zip", ("good/", 0o40755, ""), ("good/a.txt", 0o100644, "text")), tmp_path / "out")
    assert [(tmp_path / "out" / name).read_text() for name in files_below(tmp_path / "out")] == ["text", "old"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("../evil", tarfile.REGTYPE, "x")], "leaves the folder"),
        ([("good/../../evil", tarfile.REGTYPE, "x")], "leaves the folder"),
        ([("/tmp/evil", tarfile.REGTYPE, "x")], "is absolute"),
        ([("C:\\evil", tarfile.REGTYPE, "x")], "is absolute"),
        ([("evil", LINK, "../outside")], "leaves the folder"),
        ([("evil", LINK, "/etc")], "is absolute"),
        ([("evil", HARD, "../outside")], "leaves the folder"),
        ([("evil", HARD, "/etc/passwd")], "is absolute"),
        ([("good/link", LINK, "."), ("good/link/evil", LINK, "..")], "passes through"),
        ([("good/link", LINK, "../b"), ("evil", LINK, "good/link/../..")], "passes through"),
        ([("good/link", LINK, "../b"), ("evil", HARD, "good/link")], "symbolic link"),
        ([("evil", tarfile.CHRTYPE, "")], "is no file"),
        ([("GOOD/a.TXT", tarfile.REGTYPE, "x")], "differs from 'good/a.txt' in case only"),
        ([("Link", LINK, "b"), ("lINK/evil", tarfile.REGTYPE, "x")], "passes through"),
        ([("../evil", 0o100644, "")], "leaves the folder"),
        ([("C:/evil", 0, "")], "is absolute"),
        ([("evil", stat.S_IFLNK | 0o777, "../outside")], "is no file"),
        ([("Good/A.txt", 0o100644, "")], "differs from 'good/a.txt' in case only"),
    ],
)
def test_an_archive_that_reaches_outside_writes_nothing(tmp_path, members, message) -> None:
    if isinstance(members[0][1], int):
        path = zip_file(tmp_path / "bad", ("good/a.txt", 0o100644, "text"), *members)
    else:
        path = tar_file(tmp_path / "bad", FILE, *members)
    with pytest.raises(ValueError, match=rf"bad: member {re.escape(repr(members[-1][0]))}.*{message}"):
        unpack(path, tmp_path / "a/out")
    assert files_below(tmp_path) == ["bad"]


@pytest.fixture(params=["tar", "zip"])
def two(request, tmp_path):
    """An archive of the files first and good/a.txt."""
    if request.param == "tar":
        return tar_file(tmp_path / "a.tar.gz", ("first", tarfile.REGTYPE, "x"), FILE)
    return zip_file(tmp_path / "a.zip", ("first", 0o100644, "x"), ("good/a.txt", 0o100644, "text"))


@pytest.mark.parametrize("linked", ["good", "good/a.txt", "pipe"])
def test_links_and_pipes_that_lie_in_the_folder_are_not_followed_outside(tmp_path, two, linked) -> None:
    out, outside = tmp_path / "out", tmp_path / "elsewhere"
    for folder in (outside, out if linked == "good" else out / "good"):
        folder.mkdir(parents=True)
    if linked == "pipe":
        os.mkfifo(out / "good/a.txt")
    else:
        (out / linked).symlink_to(outside if linked == "good" else outside / "a.txt")
    with pytest.raises(ValueError, match="nothing was unpacked"):
        unpack(two, out)
    assert (files_below(outside), (out / "first").exists()) == ([], False)


def test_links_inside_and_of_the_folder_itself_are_followed(tmp_path, two) -> None:
    (tmp_path / "real/other").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "real")
    (tmp_path / "real/good").symlink_to("other")
    unpack(two, tmp_path / "out")
    assert (tmp_path / "real/other/a.txt").read_text() == "text"
    for content, said in ((PAGE, " but a page"), (b"text", "")):
        two.write_bytes(content)
        with pytest.raises(ValueError, match=f"{two.name} is neither a tar nor a zip file{said}"):
            unpack(two, tmp_path / "out")


# cards and the command


def test_cards_list_archives_with_checksums_or_say_where_the_data_is() -> None:
    without = []
    for card in (load_card(str(path)) for path in (Path(__file__).parents[3] / "datasets").glob("*.yaml")):
        if card.download:
            without += [entry.archive.name for entry in read_downloads(card) if not entry.archive.md5]
        else:
            with pytest.raises(ValueError, match=re.escape(card.source.strip())):
                read_downloads(card)
    assert set(without) == {"panoptic_annotations_trainval2017.zip"}
    url = {"url": "http://host/a.zip"}
    for entry, message in (
        ({"md5": MD5}, "a download entry is"),
        (url | {"inot": "x"}, "a download entry is"),
        (url | {"into": "../x"}, "leaves the folder"),
        (url | {"into": "/x"}, "is absolute"),
    ):
        with pytest.raises(ValueError, match=message):
            read_downloads(Card(name="mine", format="voc", splits={}, download=(entry,)))


def test_the_command_fetches_and_unpacks_what_a_card_lists(resdet, server, tmp_path, monkeypatch) -> None:
    server.content = tar_file(tmp_path / "a.tgz", FILE).read_bytes()
    archive, card = server.archive(hashlib.md5(server.content).hexdigest(), name="a.tgz"), tmp_path / "mine.yaml"
    entry = {"url": archive.url, "md5": archive.md5, "into": "coco/annotations"}
    card.write_text(yaml.safe_dump({"format": "coco", "classes": ["a"], "splits": {}, "download": [entry]}))
    assert resdet("download", card, "--root", tmp_path / "root").status == 0
    monkeypatch.setenv("RESDET_DATA_ROOT", str(tmp_path / "other"))
    assert resdet("download", card).status == 0
    for folder in ("root", "other"):
        assert files_below(tmp_path / folder) == ["archives/a.tgz", "coco/annotations/good/a.txt"]
    card.write_text("{format: voc, classes: [a], splits: {}, source: ask the author}\n")
    assert re.search(r"^error: .*lists no archives.*ask the author", resdet("download", card).err)
