"""The runtime's files are those of one version, whatever way they come."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from detection.export.web import runtime
from detection.export.web.runtime import find_runtime

CONTENTS = {"run.mjs": b"of the version", "run.wasm": b"machine code"}


@pytest.fixture(autouse=True)
def expected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small package is the one whose checksums are known; there is no npm, and no network."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    monkeypatch.setattr(runtime, "FILES", sums)
    monkeypatch.setattr(runtime, "fetch", lambda *_, **__: pytest.fail("asks the network"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def pack(contents: Mapping[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"../outside": b"no file of ours", **contents}.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def make_folder(path: Path, contents: Mapping[str, bytes] = CONTENTS) -> Path:
    path.mkdir(parents=True)
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return path


def test_a_folder_is_that_of_the_package_or_its_dist(tmp_path: Path) -> None:
    dist = make_folder(tmp_path / "package" / "dist")
    assert find_runtime(dist, kept=tmp_path / "kept") == dist
    assert find_runtime(dist.parent, kept=tmp_path / "kept") == dist
    assert not (tmp_path / "kept").exists()


def test_another_version_and_a_missing_file_are_refused_by_name(tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", CONTENTS | {"run.wasm": b"of another version"})
    for folder, name in ((other, "run.wasm"), (tmp_path / "none", "run.mjs")):
        with pytest.raises(ValueError, match=rf"{name}.*--runtime package/dist"):
            find_runtime(folder)


@pytest.mark.skipif("sys.platform == 'win32'", reason="npm is a shell script here")
def test_npm_brings_them_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tarball, npm, kept = pack(CONTENTS, tmp_path / "package.tgz"), tmp_path / "bin" / "npm", tmp_path / "kept"
    npm.parent.mkdir()
    npm.write_text(
        f'#!/bin/sh\n[ "$1 $2" = "pack {runtime.PACKAGE}" ] && /bin/cp {tarball} "$4/{runtime.TARBALL.name}"\n'
    )
    npm.chmod(0o755)
    assert find_runtime(kept=kept) == kept
    npm.unlink()
    assert find_runtime(kept=kept) == kept  # from there
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == CONTENTS
    assert not (tmp_path / "outside").exists()


def test_without_npm_the_registry_sends_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = make_folder(tmp_path / "kept", {"run.mjs": b"half a fi"})
    monkeypatch.setattr(runtime, "fetch", lambda _, folder, **__: pack(CONTENTS, folder / "package.tgz"))
    find_runtime(kept=kept)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == CONTENTS


def test_what_can_not_be_had_is_told_with_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = CONTENTS | {"run.mjs": b"of someone else"}
    monkeypatch.setattr(runtime, "fetch", lambda _, folder, **__: pack(wrong, folder / "package.tgz"))
    with pytest.raises(ValueError, match=r"no npm.*SHA-256.*https://registry\.npmjs\.org.*--runtime package/dist"):
        find_runtime(kept=tmp_path / "kept")
    assert [*(tmp_path / "kept").iterdir()] == []
