"""Models by their name on the Hugging Face hub: a loopback endpoint that serves it, its cache, and no network."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import save_file

from rest.errors import UserError
from rest.model.families import hub
from rest.model.families.hub import commit, model_folder, tokenizer_folder
from rest.model.families.xlmr import read_xlmr
from rest.reward.learned.encoder import HuggingFaceEncoder

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "rewards" / "xlmr"
NAME = "some-org/tiny-model"
FIRST, SECOND = "1" * 40, "2" * 40


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class Hub:
    """The part of the hub's interface that fetching needs, with the files of each commit."""

    def __init__(self) -> None:
        self.branch = FIRST
        self.commits: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    def answer(self, path: str) -> Answer:
        path, _, _ = path.partition("?")
        self.asked.append(path)
        parts = path.strip("/").split("/")
        if path.startswith(f"/api/models/{NAME}"):
            found = {"main": self.branch, **{name: name for name in self.commits}}.get(parts[-1])
            if found is None:
                return Answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            files = self.commits[found]
            if "tree" in parts:
                tree = [{"type": "file", "path": n, "size": len(x), "oid": oid(x)} for n, x in files.items()]
                return Answer(200, json.dumps(tree).encode(), {})
            siblings = [{"rfilename": name} for name in files]
            return Answer(200, json.dumps({"id": NAME, "sha": found, "siblings": siblings}).encode(), {})
        if path.startswith(f"/{NAME}/resolve/"):
            found, name = parts[3], "/".join(parts[4:])
            content = self.commits[found][name]
            return Answer(200, content, {"X-Repo-Commit": found, "ETag": f'"{oid(content)}"'})
        gated = "gated" in path
        return Answer(403 if gated else 404, b"{}", {"X-Error-Code": "GatedRepo" if gated else "RepoNotFound"})


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def server():
    """A Hub and its address."""
    told = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = told.answer(self.path)
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(answer.body)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield told, f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def files(tmp_path: Path, value: float, weights: str = "model.safetensors") -> dict[str, bytes]:
    """What a model on the hub has, with much that is not needed here."""
    save_file({"x": np.full(2, value, np.float32)}, tmp_path / "made.safetensors")
    content = (tmp_path / "made.safetensors").read_bytes()
    needed = {"config.json": b"{}", "tokenizer.json": b"{}", "spiece.model": b"pieces", weights: content}
    others = ("README.md", "modeling_own.py", "tf_model.h5", "onnx/model.safetensors", "model.fp16.safetensors")
    return needed | dict.fromkeys(others, b"not needed")


FETCH = """
import sys
from rest.errors import UserError
from rest.model.families.hub import commit, model_folder
try:
    folder = model_folder(*sys.argv[1:])
    print(folder, commit(folder))
except UserError as error:
    print("refused:", error)
"""


def fetch(cache: Path, endpoint: str, *name: str, **environment: str) -> str:
    """What a process of its own prints: the library reads its settings when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    own = {"HF_HOME": str(cache), "HF_HUB_CACHE": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
    run = [sys.executable, "-c", FETCH, *name]
    done = subprocess.run(run, check=True, env=kept | own | environment, stdout=subprocess.PIPE, text=True, timeout=120)
    return done.stdout.strip()


def found(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_model_is_fetched_once_and_its_commit_is_known(server, tmp_path):
    told, endpoint = server
    told.commits = {FIRST: files(tmp_path, 1), SECOND: files(tmp_path, 2, "pytorch_model.bin")}
    told.commits[FIRST]["pytorch_model.bin"] = b"not needed"
    cache = tmp_path / "cache"
    snapshots = cache / "models--some-org--tiny-model" / "snapshots"

    assert fetch(cache, endpoint, NAME) == f"{snapshots / FIRST} {FIRST}"
    assert found(snapshots / FIRST) == {"config.json", "tokenizer.json", "spiece.model", "model.safetensors"}
    assert (snapshots / FIRST / "model.safetensors").read_bytes() == told.commits[FIRST]["model.safetensors"]

    told.asked.clear()
    assert fetch(cache, endpoint, NAME) == f"{snapshots / FIRST} {FIRST}"
    assert not any("resolve" in path for path in told.asked)  # no file is fetched again

    told.branch = SECOND  # the branch has moved on, to a model that has only what PyTorch saved
    assert fetch(cache, endpoint, NAME, FIRST) == f"{snapshots / FIRST} {FIRST}"
    assert fetch(cache, endpoint, NAME) == f"{snapshots / SECOND} {SECOND}"
    assert found(snapshots / SECOND) == {"config.json", "tokenizer.json", "spiece.model", "pytorch_model.bin"}

    told.asked.clear()
    offline = fetch(cache, endpoint, NAME, HF_HUB_OFFLINE="1")
    assert (offline, told.asked) == (f"{snapshots / SECOND} {SECOND}", [])


def test_what_the_hub_has_not_is_one_sentence(server, tmp_path):
    told, endpoint = server
    told.commits = {FIRST: {"config.json": b"{}"}}
    for name, message in {
        (NAME, "none"): f"refused: {NAME}: the hub has no revision 'none' of it",
        ("some-org/other",): f"refused: some-org/other: no such folder, and the hub at {endpoint} has no model",
        ("some-org/gated",): "refused: some-org/gated: is given only to whom its owner allows",
        (NAME,): f"refused: {NAME}: {tmp_path}",
    }.items():
        said = fetch(tmp_path / "cache", endpoint, *name)
        assert said.startswith(message) and "\n" not in said
    assert "has neither model.safetensors nor pytorch_model.bin" in said


def test_without_a_network_one_sentence_says_what_is_missing(tmp_path):
    nowhere = "http://127.0.0.1:9"
    for environment, why in {"0": f"{nowhere} cannot be reached", "1": "HF_HUB_OFFLINE is set"}.items():
        said = fetch(tmp_path, nowhere, NAME, HF_HUB_OFFLINE=environment)
        assert said == (
            f"refused: {NAME}: no such folder, and not all files of its revision 'main' are in {tmp_path}, "
            f"while {why}; where there is a network, `hf download {NAME} --revision main` fetches them"
        )


# A cache that is there already


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The model's folder in a cache as the hub's library lays it out; nothing is reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--some-org--tiny-model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(FIRST)
    (folder / "blobs").mkdir()
    (folder / "snapshots" / FIRST).mkdir(parents=True)
    hub._fetched.cache_clear()
    yield folder
    hub._fetched.cache_clear()


def put(cache: Path, name: str, content: bytes = b"{}") -> None:
    blob = cache / "blobs" / oid(content)
    blob.write_bytes(content)
    (cache / "snapshots" / FIRST / name).symlink_to(os.path.relpath(blob, cache / "snapshots" / FIRST))


def test_a_model_in_the_cache_needs_no_network(cache):
    put(cache, "config.json")
    with pytest.raises(UserError, match=r"has neither model\.safetensors nor.*hf download some-org/tiny-model"):
        model_folder(NAME)
    put(cache, "pytorch_model.bin", b"weights")
    for revision in ("main", FIRST):
        assert model_folder(NAME, revision) == model_folder(Path(NAME), revision) == cache / "snapshots" / FIRST
    assert commit(model_folder(NAME)) == FIRST
    with pytest.raises(UserError, match=f"not all files of its revision '{SECOND}' are in"):
        model_folder(NAME, SECOND)


def test_a_published_network_is_read_by_its_name(cache):
    for path in GOLDEN.iterdir():
        put(cache, path.name, path.read_bytes())
    encoder, wanted = HuggingFaceEncoder(NAME), read_xlmr(GOLDEN)
    assert encoder.commit == FIRST
    read = encoder.read()
    assert read.tokenizer.identity == wanted.tokenizer.identity
    assert read.network.identity("") == wanted.network.identity("")


def test_a_tokenizer_alone_needs_no_weights(cache):
    put(cache, "tokenizer.json")
    assert tokenizer_folder(NAME) == cache / "snapshots" / FIRST


def test_in_a_process_a_branch_stays_where_it_is(cache):
    put(cache, "model.safetensors")
    before = model_folder(NAME)
    (cache / "refs" / "main").write_text(SECOND)
    shutil.copytree(cache / "snapshots" / FIRST, cache / "snapshots" / SECOND, symlinks=True)
    assert model_folder(NAME) == before


def test_a_folder_is_itself(tmp_path, monkeypatch):
    (tmp_path / "some-org" / "tiny-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_folder(NAME) == model_folder(Path(NAME)) == Path(NAME)
    assert commit(Path(NAME)) is None


@pytest.mark.parametrize(
    "name", ["opus-mt-de-en", "/models/opus", "./models/opus", "models/opus/de", "~/opus", "a b/c"]
)
def test_what_is_neither_a_folder_nor_a_name_is_refused(name):
    with pytest.raises(UserError, match="no such folder, and no name on the Hugging Face hub"):
        model_folder(name)
