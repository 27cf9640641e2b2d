"""Mirrors detection/data/kept.py."""

import os
from threading import Thread

from detection.data import kept
from detection.data.kept import content_digest, kept_file, store, taken


def test_the_environment_and_the_facts_say_where_files_are_kept(monkeypatch) -> None:
    for cache, xdg, home, folder in [
        ("/a", "", "", "/a/data"),
        ("", "/b", "", "/b/resdet/data"),
        ("", "", "/c", "/c/.cache/resdet/data"),
        ("off", "/b", "", None),
    ]:
        for name, value in (("RESDET_CACHE", cache), ("XDG_CACHE_HOME", xdg), ("HOME", home)):
            monkeypatch.setenv(name, value)
        found = kept_file(".x", 1, ["a"])
        assert (found and str(found.parent)) == folder
        assert (found == kept_file(".x", 1, ["b"])) == (folder is None)


def test_least_recently_used_files_go_beyond_the_limit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(kept, "MOST_BYTES", 250)
    for name, used in (("old", 1), ("new", 3), ("middle", 2)):
        (tmp_path / f"{name}.x").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.x", (used, used))
    store(tmp_path / "own.x", lambda path: path.write_bytes(bytes(100)))
    assert {path.name for path in tmp_path.iterdir()} == {"own.x", "new.x"}


def test_one_at_a_time_makes_a_file_and_a_folder_that_cannot_be_made_stops_nobody(tmp_path) -> None:
    path, order = tmp_path / "below/a.x", []

    def other():
        with taken(path):
            order.append("other")

    with taken(path):
        thread = Thread(target=other)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "other"]
    (tmp_path / "file").touch()
    with taken(tmp_path / "file/a.x"):
        pass


def test_every_byte_counts_for_the_digest_of_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(kept, "PART", 4)
    contents, found = [b"", b"abcd", b"abcdefghi", b"abcdefghj", b"Abcdefghi", b"abcdefgh"], set()
    for content in contents:
        (tmp_path / "a").write_bytes(content)
        found.add(content_digest(tmp_path / "a"))
    assert len(found) == len(contents)
