"""Gets the files of onnxruntime-web from a folder, from npm or from its registry, and checks them."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from detection.data.download import Archive, fetch
from detection.progress import bar

__all__ = ["FILES", "PACKAGE", "RUNTIME_FOLDER", "find_runtime"]

RUNTIME_FOLDER = Path("output/onnxruntime-web")  # folder that keeps the files for later exports
VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
TARBALL = Archive(f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz")
INSIDE = "package/dist"  # of the tarball, 33 MB with all that a CPU does not need

# File name -> SHA-256, so that a folder, npm and a download are held to the same; of the tarball with npm's integrity
# sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==.
FILES: Mapping[str, str] = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}


def find_runtime(given: Path | None = None, *, kept: Path = RUNTIME_FOLDER) -> Path:
    """Returns a folder with ``FILES``.

    Args:
        given: folder with the files, or with a folder dist that has them; None: ``kept``, filled if necessary.
        kept: folder that keeps the files for later exports.

    Raises:
        ValueError: a file is missing or differs, or the files can't be downloaded.
    """
    if given is not None:
        folder = given / "dist" if (given / "dist").is_dir() else given
        _check(folder)
        return folder
    try:
        _check(kept)
    except ValueError:
        _bring(kept)
    return kept


def _check(folder: Path) -> None:
    for name in FILES:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} lacks {name} of {PACKAGE}; {_by_hand()}")
        _check_content(f"{folder / name}", name, (folder / name).read_bytes())


def _check_content(shown: str, name: str, content: bytes) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != FILES[name]:
        raise ValueError(f"{shown} is not {PACKAGE}'s: SHA-256 is {found}, expected {FILES[name]}; {_by_hand()}")


def _by_hand() -> str:
    return (
        f"download {TARBALL.url} (or type npm pack {PACKAGE}), type tar xzf {TARBALL.name}, and give --runtime {INSIDE}"
    )


def _bring(kept: Path) -> None:
    """Downloads ``FILES`` into ``kept``; deletes the package afterwards, but keeps a partial download."""
    reasons = list[str]()
    kept.mkdir(parents=True, exist_ok=True)
    for bring in (_by_npm, _by_download):
        try:
            tarball = bring(kept)
            try:
                _unpack(tarball, kept)
            finally:
                tarball.unlink()
            return
        except (OSError, ValueError, tarfile.TarError, subprocess.TimeoutExpired) as error:
            reasons.append(str(error))
    raise ValueError(f"{PACKAGE} is not available: {'; '.join(reasons)}; {_by_hand()}")


def _by_npm(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError("there is no npm")
    command = [npm, "pack", PACKAGE, "--pack-destination", str(folder), "--fetch-retries", "1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8", timeout=600)
    if done.returncode:
        raise ValueError(f"npm pack says {next(iter(done.stderr.splitlines()), done.returncode)!r}")
    return folder / TARBALL.name


def _by_download(folder: Path) -> Path:
    with bar(TARBALL.name, unit="bytes") as move:
        return fetch(TARBALL, folder, progress=move, attempts=2)


def _unpack(tarball: Path, folder: Path) -> None:
    """Writes only ``FILES`` of the package ``tarball`` to ``folder``, after checking them."""
    with tarfile.open(tarball) as tar:
        for name in FILES:
            member = next((member for member in tar if member.name == f"{INSIDE}/{name}"), None)
            stream = None if member is None else tar.extractfile(member)
            content = b"" if stream is None else stream.read()
            _check_content(f"{name} in {tarball}", name, content)
            (folder / name).write_bytes(content)
