"""Checkpoints from the hub and exports to it, by huggingface_hub's own client against a stand-in on the loopback."""

import base64
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import h5py
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from data_helpers import TINY
from errors import InputError, UsageError
from inference import weights
from inference_helpers import CLASSIFIER, DATA, MASKED, equal, random_module, saved
from run_helpers import CLASSIFIER as STAGE_3
from run_helpers import MASKED as STAGE_2
from run_helpers import call, labelled_file, pretraining_file
from training import checkpoints, hub

huggingface_hub = pytest.importorskip("huggingface_hub", reason="requirements-peers.txt is not installed")

REVISIONS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(ThreadingHTTPServer):
    """What the client asks of the hub. files: (repository, revision) -> name -> content; asked: paths."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.refuses = False


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[4] == "tree":
            held = self.server.files.get(("/".join(parts[2:4]), parts[5]), {})
            rows = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in held.items()]
            return self.answer(json.dumps(rows).encode(), Content_Type="application/json")
        data = self.server.files.get(("/".join(parts[:2]), parts[3]), {}).get("/".join(parts[4:]))
        if data is None:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound")
        etag = hashlib.sha256(data).hexdigest()
        return self.answer(data, ETag=f'"{etag}"', X_Repo_Commit=REVISIONS[parts[3]])

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.server.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.strip("/").split("/")
        if self.server.refuses:
            return self.answer(b'{"error": "no token"}', 401)
        if parts[-2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            reply: Any = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        elif parts[-2] == "commit":
            held = self.server.files.setdefault(("/".join(parts[2:4]), "main"), {})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    held[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            reply = {
                "commitUrl": f"http://127.0.0.1:{self.server.server_port}/org/model/commit/c",
                "commitOid": "c" * 40,
                "success": True,
            }
        else:
            reply = {"url": f"http://127.0.0.1:{self.server.server_port}/org/model", "name": "org/model", "id": "0"}
        return self.answer(json.dumps(reply).encode(), Content_Type="application/json")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub._fetch.cache_clear()
    with Hub() as it:
        Thread(target=it.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{it.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield it
        it.shutdown()
    hub._fetch.cache_clear()


def content(path: Path, module: Any, **entries: Any) -> bytes:
    return saved(path, module, **entries).read_bytes()


def test_an_address_gives_the_file_of_its_revision(server: Hub, tmp_path: Path) -> None:
    one, two = (torch.full((2,), value) for value in (1.0, 2.0))
    torch.save({"model": {"a": one}}, tmp_path / "one.pth")
    save_file({"a": two}, tmp_path / "two.safetensors")
    server.files["org/model", "main"] = {"README.md": b"", "sub/one.pth": (tmp_path / "one.pth").read_bytes()}
    server.files["org/model", "v1"] = {
        "model.safetensors": (tmp_path / "two.safetensors").read_bytes(),
        "other.pth": b"",
    }
    for address, value in {
        "hf://org/model": one,  # the only checkpoint
        Path("hf://org/model/sub/one.pth"): one,
        "hf://org/model@v1": two,
        "hf://org/model@v1/model.safetensors": two,
    }.items():
        assert torch.equal(checkpoints.read(address)["model"]["a"], value), address
    digest = hashlib.sha256((tmp_path / "two.safetensors").read_bytes()).hexdigest()
    fetched = f"hf://org/model@{'b' * 40}/model.safetensors (SHA-256 {digest})"
    assert hub.described("hf://org/model@v1") == {"fetched": fetched}
    asked = len(server.asked)
    checkpoints.read("hf://org/model@v1")
    assert len(server.asked) == asked, "once a process"
    assert hub.described(tmp_path / "one.pth") == hub.described(None) == {}


def test_what_cannot_be_fetched_is_one_line(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["org/several", "main"] = {"a.pth": b"", "b.pth": b""}
    server.files["org/none", "main"] = {"README.md": b""}
    cases = {
        "hf://org": (UsageError, r"has the form hf://ORG/REPO"),
        "hf://org/several": (InputError, r"hf://org/several holds a.pth, b.pth: name one, hf://org/several/FILE"),
        "hf://org/none": (InputError, "holds no checkpoint"),
        "hf://org/none@main/x.pth": (InputError, r"hf://org/none@main/x.pth: cannot be fetched, \w+ \(.*correct"),
    }
    for address, (kind, text) in cases.items():
        with pytest.raises(kind, match=text) as error:
            checkpoints.read(address)
        assert "\n" not in str(error.value)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"needs the package huggingface_hub: .*requirements-peers.txt"):
        checkpoints.read("hf://org/several/a.pth")


def test_stages_start_from_the_hub_and_keep_what_they_fetched(server: Hub, tmp_path: Path) -> None:
    tokenizer = content(tmp_path / "t.pth", random_module(TINY, n_code=16, code_dim=8))
    masked = content(tmp_path / "m.pth", random_module(MASKED, vocab_size=16))
    server.files["org/model", "main"] = {"vqnsp.pth": tokenizer, "labram.pth": masked}
    train = pretraining_file(tmp_path / "train.hdf5", seconds=(8,))
    task = labelled_file(tmp_path / "task.hdf5", counts={"train": 4, "val": 4, "test": 4})
    runs = {
        "run_labram_pretraining": [*STAGE_2, "--train_data", train, "--tokenizer_weight", "hf://org/model/vqnsp.pth"],
        "run_class_finetuning": [*STAGE_3, "--dataset", task, "--finetune", "hf://org/model@main/labram.pth"],
    }
    for (script, words), data in zip(runs.items(), (tokenizer, masked), strict=True):
        assert call(script, *words, "--output_dir", tmp_path / script) == 0
        state = checkpoints.read(tmp_path / script / "checkpoint.pth")
        assert f"hf://org/model@{'a' * 40}/" in state["settings"]["fetched"]
        assert hashlib.sha256(data).hexdigest() in state["settings"]["fetched"]
        asked = len(server.asked)
        local = [
            tmp_path / ("t.pth" if "vqnsp" in str(word) else "m.pth") if "hf:" in str(word) else word for word in words
        ]
        assert call(script, *local, "--output_dir", tmp_path / f"local {script}") == 0
        assert len(server.asked) == asked, "nothing is fetched unless a flag names it"
        own = checkpoints.read(tmp_path / f"local {script}" / "checkpoint.pth")
        assert equal(state["model"], own["model"]) and "fetched" not in own["settings"]


def test_results_say_what_was_fetched_and_a_run_resumes_from_the_hub(server: Hub, tmp_path: Path) -> None:
    train = pretraining_file(tmp_path / "train.hdf5", seconds=(8,))
    held = {"vqnsp.pth": content(tmp_path / "t.pth", random_module(TINY, n_code=16, code_dim=8))}
    server.files["org/model", "main"] = held
    words = ["tokenize", "--checkpoint", "hf://org/model", "--input", train, "--output", tmp_path / "codes.hdf5"]
    words += ["--window", 2]
    assert call("run_inference", *words) == 0
    with h5py.File(tmp_path / "codes.hdf5") as file:
        assert file.attrs["fetched"].startswith(f"hf://org/model@{'a' * 40}/vqnsp.pth (SHA-256 ")
    words = [*STAGE_2, "--train_data", train, "--tokenizer_weight", tmp_path / "t.pth", "--output_dir"]
    assert call("run_labram_pretraining", *words, tmp_path / "run") == 0
    held["run.pth"] = (tmp_path / "run" / "checkpoint.pth").read_bytes()
    assert call("run_labram_pretraining", *words, tmp_path / "more", "--resume", "hf://org/model/run.pth") == 0
    assert (tmp_path / "more" / "checkpoint.pth").read_bytes() == held["run.pth"], "all epochs are done"


@pytest.mark.parametrize("to", ["safetensors", "braindecode"])
def test_an_export_is_pushed_with_a_card_and_comes_back(server: Hub, tmp_path: Path, to: str) -> None:
    module = random_module(CLASSIFIER, num_classes=1)
    flags = {"dataset": ["/home/jane/Odd.hdf5"], "lr": 5e-4, "epochs": 3, "output_dir": "/home/jane/out"}
    extras = {"best": {"epoch": 2, "stats": {"test_balanced_accuracy": 0.625}}}
    data_set = DATA | {"classes": ["rest", "task/hard"]}
    path = saved(tmp_path / "c.pth", module, data_set=data_set, args=flags, extras=extras, epoch=4)
    words = ["export", "--checkpoint", path, "--to", to, "--output", tmp_path / "out.safetensors"]
    assert call("run_inference", *words) == 0 and not server.asked
    assert call("run_inference", *words, "--push", "org/model") == 0
    held = server.files["org/model", "main"]
    assert held["model.safetensors"] == (tmp_path / "out.safetensors").read_bytes()
    assert json.loads(held["config.json"]) == json.loads((tmp_path / "out.json").read_bytes())
    _, header, text = held["README.md"].decode().split("---\n")
    assert yaml.safe_load(header)["tags"] == ["eeg", "labram"]
    data, recipe, results = text.split("\n## ")[1:]
    assert (
        "| dataset | Odd.hdf5 |" in data
        and "| classes | rest, task/hard |" in data
        and "| electrodes | C3, CZ, C4 |" in data
    )
    assert "| --lr | 0.0005 |" in recipe and "| --epochs | 3 |" in recipe and "out" not in recipe
    assert "| epoch | 2 |" in results and "| test_balanced_accuracy | 0.625 |" in results
    assert "jane" not in text
    back, description = weights.load("hf://org/model")
    assert equal(back.state_dict(), module.state_dict()) and description.classes == ("rest", "task/hard")
    again = tmp_path / "again.safetensors"
    assert (
        call("run_inference", "export", "--checkpoint", "hf://org/model", "--to", "safetensors", "--output", again) == 0
    )
    assert set(load_file(again)) == set(module.state_dict())


def test_a_push_that_the_hub_refuses_is_one_line(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "m.pth", random_module(MASKED, vocab_size=16))
    words = ["export", "--checkpoint", path, "--to", "safetensors", "--output", tmp_path / "o.safetensors", "--push"]
    server.refuses = True
    assert call("run_inference", *words, "org/model") == 1
    (tmp_path / "o.safetensors").unlink()
    assert call("run_inference", *words, "hf://org/model") == 2 and not (tmp_path / "o.safetensors").exists()
    refused, misspelt = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "hf auth login" in refused and "must be ORG/REPO" in misspelt
