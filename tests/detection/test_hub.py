"""A run goes to a hub and comes back: against a stand-in of the hub's HTTP API on this machine."""

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants

from detection.engine.checkpoint import read_checkpoint
from detection.export.runtime import load
from detection.hub import local_path, parse_address, results_folder
from detection.packaged import find_config
from detection.predictor import Predictor
from detection.weights.origin import read_origin

TOKEN = "hf_of_a_test"
PATH = re.compile(r"/(api/models/)?(?P<repo>\w+/\w+)(/(\w+)/(?P<revision>\w+))?(/(?P<file>.*)|\?.*)?")
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub 2.4's own upload


class Hub(ThreadingHTTPServer):
    """The repositories of the stand-in: name -> private, and file -> content by commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.private, self.commits = dict[str, bool](), dict[str, list[dict[str, bytes]]]()
        self.blobs, self.asked = dict[str, bytes](), list[str]()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes] | None:
        commits = self.commits[repo]
        if revision == "main":
            return commits[-1] if commits else {}
        return commits[int(revision, 16) - 1] if re.fullmatch("[0-9a-f]{40}", revision) else None

    def sha(self, repo: str) -> str:
        return f"{len(self.commits[repo]):040x}"


class Handler(BaseHTTPRequestHandler):
    """The requests of huggingface_hub to make, fill and read a repository, without Xet."""

    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        self.server.asked.append(self.path)

    def answer(self, content: Any, *, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status=status, X_Error_Code=code)

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, match = self.server, PATH.fullmatch(self.path)
        if match is None or self.path == "/api/agent-harnesses":
            return self.refuse(404, "EntryNotFound")
        repo, revision = match["repo"], match["revision"] or "main"
        if repo not in hub.private or (hub.private[repo] and not self.known):
            return self.refuse(401, "RepoNotFound")
        files = hub.files(repo, revision)
        if files is None:
            return self.refuse(404, "RevisionNotFound")
        if "/resolve/" in self.path:
            content = files[match["file"]]
            return self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=revision)
        if "/tree/" in self.path:
            sizes = {name: (len(content), hashlib.sha1(content).hexdigest()) for name, content in files.items()}
            return self.answer([{"type": "file", "path": n, "size": s, "oid": oid} for n, (s, oid) in sizes.items()])
        sha = hub.sha(repo) if revision == "main" else revision
        return self.answer({"id": repo, "sha": sha, "private": hub.private[repo], "siblings": []})

    def do_POST(self) -> None:
        content = self.body()
        if self.path == "/api/validate-yaml":
            return self.answer({"warnings": []})
        if not self.known:
            return self.refuse(401, "Unauthorized")
        if self.path == "/api/repos/create":
            return self.create(json.loads(content))
        if "/preupload/" in self.path:
            modes = {True: "lfs", False: "regular"}
            names = [file["path"] for file in json.loads(content)["files"]]
            files = [{"path": n, "uploadMode": modes[n.endswith(".safetensors")], "shouldIgnore": False} for n in names]
            return self.answer({"files": files})
        if "/info/lfs/" in self.path:
            wanted, upload = json.loads(content)["objects"], f"{self.server.address}/lfs/"
            objects = [{**own, "actions": {"upload": {"href": upload + own["oid"]}}} for own in wanted]
            return self.answer({"transfer": "basic", "objects": objects})
        return self.commit([json.loads(line) for line in content.splitlines()])

    def do_PUT(self) -> None:
        content, digest = self.body(), self.path.removeprefix("/lfs/")
        assert hashlib.sha256(content).hexdigest() == digest
        self.server.blobs[digest] = content
        self.answer({})

    def create(self, given: dict[str, Any]) -> None:
        hub, repo = self.server, f"{given['organization']}/{given['name']}"
        private = given.get("visibility") == "private" or given.get("private", False)  # the latter before 2.0
        hub.private[repo], hub.commits[repo] = private, []
        self.answer({"url": f"{hub.address}/{repo}"})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        hub, repo = self.server, "/".join(self.path.split("/")[3:5])
        files = dict(hub.files(repo) or {})
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
        hub.commits[repo].append(files)
        self.answer({"commitUrl": f"{hub.address}/{repo}", "commitOid": hub.sha(repo)})


@pytest.fixture
def hub(monkeypatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub that huggingface_hub talks to, with an empty cache and a token that may write."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        values = {"ENDPOINT": server.address, "HF_HUB_DISABLE_XET": True, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        values |= {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_TOKEN_PATH": str(tmp_path / "token")}
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        server.shutdown()


@pytest.fixture
def run(tested_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tested_run, tmp_path / "parts")


@pytest.fixture
def pushed(hub: Hub, run: Path, resdet) -> Path:
    done = resdet("push", run, "me/parts")
    assert done.status == 0, done.err
    return run


def test_a_run_comes_back_from_the_hub_with_a_card(hub: Hub, pushed: Path, tmp_path: Path) -> None:
    files = hub.files("me/parts") or {}
    assert hub.private == {"me/parts": True}
    assert sorted(files) == ["README.md", "checkpoints/0000060.safetensors", "config.yaml", "test/result.json"]
    own, back = read_checkpoint(pushed), load("hf://me/parts")
    assert isinstance(back, type(own))
    assert back.path.is_relative_to(tmp_path / "cache")
    assert all(torch.equal(values, back.weights[name]) for name, values in own.weights.items())
    image = Path(__file__).parents[1] / "old_runs" / "data" / "coco" / "train" / "1.png"
    ours, theirs = (Predictor.load(weights) for weights in (pushed, "hf://me/parts"))
    assert torch.equal(ours(image, min_score=0).boxes, theirs(image, min_score=0).boxes)
    assert ours.threshold == theirs.threshold  # of test/result.json
    assert find_config("hf://me/parts/config.yaml").read_bytes() == (pushed / "config.yaml").read_bytes()
    assert read_origin("hf://me/parts").iteration == 60
    assert read_checkpoint(Path("hf://me/parts/checkpoints/0000060.safetensors")).iteration == 60
    text = files["README.md"].decode()
    expected = {"license": "unknown", "library_name": "resdet", "pipeline_tag": "image-segmentation"}
    assert expected.items() <= ModelCard(text).data.to_dict().items()
    assert "Predictor.load('hf://me/parts')" in text


def test_a_revision_stays_as_it_was(hub: Hub, pushed: Path, resdet) -> None:
    first = hub.sha("me/parts")
    assert resdet("push", pushed, "me/parts", "--licence", "mit").status == 0
    cards = [local_path(f"hf://me/parts@{revision}/test/result.json") for revision in (first, "main")]
    assert cards[0].parents[1].name == first
    assert cards[1].parents[1].name == hub.sha("me/parts") != first
    with pytest.raises(ValueError, match=r"me/parts .*'gone'"):
        load("hf://me/parts@gone")


def test_offline_the_cache_is_enough_and_errors_name_it(hub: Hub, pushed: Path, monkeypatch) -> None:
    load("hf://me/parts")
    before = len(hub.asked)
    for name, value, part in (
        ("HF_HUB_OFFLINE", True, "unset HF_HUB_OFFLINE"),
        ("ENDPOINT", "http://127.0.0.1:9", "127.0.0.1:9"),  # nobody listens
    ):
        with monkeypatch.context() as patch:
            patch.setattr(constants, name, value)
            assert name == "ENDPOINT" or isinstance(load("hf://me/parts"), type(read_checkpoint(pushed)))
            with pytest.raises(ConnectionError) as told:
                load("hf://me/other")
            assert all(own in str(told.value) for own in ("hf://me/other", constants.HF_HUB_CACHE, part))
    assert len(hub.asked) == before


def test_what_is_no_run_is_refused(hub: Hub, pushed: Path) -> None:
    hub.private["me/else"], hub.commits["me/else"] = False, [{"model.bin": b"", "run.pt": b"", "config.yaml": b"a: 1"}]
    for address, named in (
        ("hf://me/else", "resdet push RUN me/else"),
        ("hf://me/else/run.pt", r"\.safetensors"),
        ("hf://me/else/checkpoints/a.safetensors", "checkpoints/a.safetensors"),
        ("hf://me/none", "me/none.*HF_TOKEN"),
        ("hf://me", "hf://NAME/REPO"),
        ("hf://me/parts/../../x.yaml", "hf://NAME/REPO"),
    ):
        with pytest.raises(ValueError, match=named):
            load(address)
    assert not any(path.endswith("/run.pt") for path in hub.asked)
    hub.commits["me/else"].append({"export/torch/export.json": b"{}"})
    cached = local_path("hf://me/else/export/torch")
    (cached / "model.pt2").touch()  # by another program that shares the cache
    with pytest.raises(ValueError, match="run code"):
        local_path("hf://me/else/export/torch")


def test_a_push_says_what_it_lacks_and_a_dry_run_pushes_nothing(hub: Hub, run: Path, resdet, monkeypatch) -> None:
    assert "NAME/REPO" in resdet("push", run, "parts").err
    assert "resdet export" in resdet("push", run, "me/parts", "--exports").err
    (run / "export" / "onnx").mkdir(parents=True)
    (run / "export" / "onnx" / "model.onnx").write_bytes(b"graph")
    done = resdet("push", run, "me/parts", "--exports", "--dry-run")
    assert done.status == 0
    assert "export/onnx/model.onnx" in done.out
    assert hub.asked == []
    hub.private["me/shown"], hub.commits["me/shown"] = False, []
    assert "--public" in resdet("push", run, "me/shown").err
    assert resdet("push", run, "me/shown", "--public").status == 0
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "401" in resdet("push", run, "me/shown", "--public").err
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in resdet("push", run, "me/parts").err
    assert "me/parts" not in hub.private


def test_addresses_are_told_from_paths() -> None:
    address = parse_address(Path("hf://me/parts@refs/pr/1/export/onnx"))
    assert address is not None
    assert (address.repo, address.revision, address.inside) == ("me/parts", "refs/pr/1", "export/onnx")
    assert parse_address("output/hf/parts") is None
    assert results_folder("output/parts", Path("output/parts")) == Path("output/parts")
    assert results_folder("hf://me/parts/model.safetensors", Path("cache")) == Path("output/hub/me/parts")
