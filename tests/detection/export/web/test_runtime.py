"""The runtime's files are those of one version, whatever way they come."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from detection.export.web import runtime
from detection.export.web.runtime import find_runtime

CONTENTS = {"run.mjs": b"of the version", "run.wasm": b"machine code"}


@pytest.fixture(autouse=True)
def expected(monkeypatch, tmp_path) -> None:
    """A small package is the one whose checksums are known; there is no npm, and no network."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    monkeypatch.setattr(runtime, "FILES", sums)
    monkeypatch.setattr(runtime, "fetch", lambda *_, **__: pytest.fail("asks the network"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def pack(contents: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"../outside": b"no file of ours", **contents}.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def make_folder(path: Path, contents: dict[str, bytes] = CONTENTS) -> Path:
    path.mkdir(parents=True)
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_is_that_of_the_package_or_its_dist_and_of_this_version(tmp_path: Path) -> None:
    dist, kept = make_folder(tmp_path / "package" / "dist"), tmp_path / "kept"
    assert find_runtime(dist, kept=kept) == find_runtime(dist.parent, kept=kept) == dist
    assert not kept.exists()
    other = make_folder(tmp_path / "other", CONTENTS | {"run.wasm": b"of another version"})
    for folder, name in ((other, "run.wasm"), (tmp_path / "none", "run.mjs")):
        with pytest.raises(ValueError, match=rf"{name}.*--runtime package/dist"):
            find_runtime(folder)


@pytest.mark.skipif("sys.platform == 'win32'", reason="npm is a shell script here")
def test_npm_brings_them_once(tmp_path: Path) -> None:
    tarball, npm, kept = pack(CONTENTS, tmp_path / "package.tgz"), tmp_path / "bin" / "npm", tmp_path / "kept"
    npm.parent.mkdir()
    copied = f'/bin/cp {tarball} "$4/{runtime.TARBALL.name}"'
    npm.write_text(f'#!/bin/sh\n[ "$1 $2" = "pack {runtime.PACKAGE}" ] && {copied}\n')
    npm.chmod(0o755)
    assert find_runtime(kept=kept) == kept
    npm.unlink()
    assert find_runtime(kept=kept) == kept  # from there
    assert contents(kept) == CONTENTS
    assert not (tmp_path / "outside").exists()


def test_without_npm_the_registry_sends_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent, kept = CONTENTS | {"run.mjs": b"of someone else"}, tmp_path / "kept"
    monkeypatch.setattr(runtime, "fetch", lambda _, folder, **__: pack(sent, folder / "package.tgz"))
    with pytest.raises(ValueError, match=r"no npm.*SHA-256.*https://registry\.npmjs\.org.*--runtime package/dist"):
        find_runtime(kept=kept)
    assert contents(kept) == {}
    make_folder(tmp_path / "half", {"run.mjs": b"half a fi"}).rename(kept)
    sent |= CONTENTS
    find_runtime(kept=kept)
    assert contents(kept) == CONTENTS
