"""Runs on the Hugging Face hub: addresses hf://NAME/REPO@REVISION/PATH, their download and their upload.

Only safetensors, YAML, JSON, ONNX and OpenVINO files are downloaded, since a pickle could run code. Token, cache,
endpoint and offline mode are those of huggingface_hub: HF_TOKEN or ``hf auth login``, HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["NAME", "Address", "local_path", "parse_address", "results_folder", "upload"]

READ = (".safetensors", ".yaml", ".json", ".onnx", ".xml", ".bin")  # .bin: OpenVINO's weights, plain numbers
RUN = ("checkpoints/*.safetensors", "config.yaml", "result.json", "test/result.json")
RESULTS = Path("output/hub")  # results of tests of cached weights
NAME = r"[A-Za-z0-9][\w.-]*"
# Path() makes one slash of two.
ADDRESS = re.compile(
    rf"hf:/{{1,2}}(?P<repo>{NAME}/{NAME})(@(?P<revision>refs/[\w-]+/[^/]+|[^/]+))?(/(?P<inside>.+?))?/?"
)


@dataclass(frozen=True, slots=True)
class Address:
    """A repository of the hub, or a file or folder in it.

    Attributes:
        repo: NAME/REPO.
        revision: branch, tag or commit; None: main.
        inside: path in the repository; empty: the run that it holds.
    """

    repo: str
    revision: str | None = None
    inside: str = ""

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"hf://{self.repo}{revision}" + (f"/{self.inside}" if self.inside else "")


def parse_address(text: str | Path) -> Address | None:
    """Parses the address ``text``; None for a path.

    Raises:
        ValueError: it starts like an address but is none.
    """
    if not str(text).startswith(("hf:/", "hf:\\")):
        return None
    match = ADDRESS.fullmatch(str(text).replace("\\", "/"))
    if match is None or ".." in PurePosixPath(match["inside"] or "").parts:
        raise ValueError(f"{str(text)!r} is no address of the hub; give hf://NAME/REPO or hf://NAME/REPO@REVISION/PATH")
    return Address(match["repo"], match["revision"], match["inside"] or "")


def local_path(path: str | Path) -> Path:
    """Returns ``path``, or for an address of the hub the downloaded file or folder in huggingface_hub's cache.

    Raises:
        ValueError: no such repository or revision, no access to it, or no files of ours in it.
        ConnectionError: the hub can't be reached, and the cache lacks the files.
        ImportError: huggingface_hub is missing.
    """
    address = parse_address(path)
    return Path(path) if address is None else _download(address)


def results_folder(weights: str | Path, folder: Path) -> Path:
    """Returns ``folder`` for results of local ``weights``; for weights on the hub, a folder below output/hub."""
    address = parse_address(weights)
    if address is None:
        return folder
    inside = PurePosixPath(address.inside)
    return RESULTS / address.repo / (inside.parent if inside.suffix else inside)


def upload(repo: str, files: Mapping[str, Path], *, public: bool, message: str) -> str:
    """Commits ``files`` to the main branch of ``repo``, which is made if there is none; returns its address.

    Args:
        repo: NAME/REPO.
        files: path in the repository -> file.
        public: make the repository visible to everybody.
        message: of the commit.

    Raises:
        ValueError: no token, no right to write, or ``repo`` is public and ``public`` is not set.
        ConnectionError: the hub can't be reached.
        ImportError: huggingface_hub is missing.
    """
    hub = _library(f"a push to {repo}")
    with _told(Address(repo), "write to"):
        if hub.get_token() is None:
            raise ValueError(f"{repo} can't be written: no token; run `hf auth login` or set HF_TOKEN")
        api = hub.HfApi()
        try:
            private = api.repo_info(repo).private
        except hub.errors.RepositoryNotFoundError:
            api.create_repo(repo, private=not public)
        else:
            if not private and not public:
                raise ValueError(f"{repo} exists and is public; give --public to push to it, or choose another name")
        adding = [hub.CommitOperationAdd(name, path) for name, path in files.items()]
        api.create_commit(repo, adding, commit_message=message)
    return str(Address(repo))


def _download(address: Address) -> Path:
    """Downloads ``address`` and returns its path in the cache."""
    hub, inside = _library(str(address)), address.inside
    folder = [f"{inside}/*{suffix}" for suffix in READ]
    wanted = [*RUN] if not inside else [inside] if inside.endswith(READ) else folder
    with _told(address, "read"):
        snapshot = Path(hub.snapshot_download(address.repo, revision=address.revision, allow_patterns=wanted))
    found = snapshot / inside
    if not (inside.endswith(READ) if found.is_file() else found.is_dir() and not any(found.glob("*.pt2"))):
        raise ValueError(
            f"{address}: there is no such file or folder, or it could run code: of a repository only "
            f"{', '.join(READ)} files are read; https://huggingface.co/{address.repo} lists what it has"
        )
    if not inside and not any((snapshot / "checkpoints").glob("*.safetensors")):
        raise ValueError(
            f"{address} holds no run of resdet: no checkpoints/*.safetensors; `resdet push RUN {address.repo}` writes "
            f"one, and hf://{address.repo}/FILE.safetensors means a file in it"
        )
    return found


@contextmanager
def _told(address: Address, doing: str) -> Iterator[None]:
    """Raises errors of huggingface_hub again, with the value and the repair."""
    hub = _library(str(address))
    login = "private ones need a token with access: run `hf auth login` or set HF_TOKEN"
    try:
        yield
    except hub.errors.LocalEntryNotFoundError as error:
        raise ConnectionError(_unreachable(address, doing, error)) from error
    except hub.errors.RevisionNotFoundError as error:
        raise ValueError(f"{address.repo} has no revision {address.revision!r}; leave it out for main") from error
    except hub.errors.GatedRepoError as error:
        raise ValueError(f"{address.repo} is gated: ask for access on its page; {login}") from error
    except hub.errors.RepositoryNotFoundError as error:
        raise ValueError(f"no repository {address.repo} on the hub, or no access to it; {login}") from error
    except hub.errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status not in (401, 403):
            raise ConnectionError(f"could not {doing} {address.repo}: the hub answered {error}") from error
        raise ValueError(f"could not {doing} {address.repo}: the hub refused the token ({status}); {login}") from error
    except (ValueError, ImportError):
        raise
    except Exception as error:  # those of HTTP clients, which differ between versions of huggingface_hub
        raise ConnectionError(_unreachable(address, doing, error)) from error


def _unreachable(address: Address, doing: str, error: Exception) -> str:
    constants = importlib.import_module("huggingface_hub.constants")
    offline = constants.HF_HUB_OFFLINE
    cause = error.__cause__ or error
    why = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT}: {cause}"
    repair = "unset HF_HUB_OFFLINE" if offline else "connect to the network"
    lacking = f", and the cache {constants.HF_HUB_CACHE} lacks files of it" if doing == "read" else ""
    return f"could not {doing} {address}: {why}{lacking}; {repair} and run it again, or give a local run"


def _library(need: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(f"{need} needs huggingface_hub; pip install 'resdet[hub]' ({error})") from error
