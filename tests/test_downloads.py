"""What a URL in a flag may do: fetch one file, once, that is what its digest says."""

import argparse
import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_helpers import only_line
from errors import InputError
from run_helpers import CLASSIFIER, STAGES, call, checkpoint, labelled_file
from training import downloads

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and counts what it is asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """Give the address of a server of this machine with `a.pth`, and the list of what it was asked for."""
    monkeypatch.setenv("LABRAM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.pth").write_bytes(CONTENT)
    Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/a.pth", Handler.asked
        running.shutdown()
        thread.join()


def test_a_path_is_a_path_and_nothing_is_fetched() -> None:
    place = downloads.checkpoint_place("checkpoints/labram-base.pth")
    assert place == Path("checkpoints/labram-base.pth") and downloads.fetched(place) is place


@pytest.mark.parametrize("end", ["", "#sha256=", "#sha256=12ab", f"#md5={DIGEST}", f"#sha256={DIGEST}0"])
def test_a_url_without_a_digest_is_wrong_usage(end: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="needs the SHA-256"):
        downloads.checkpoint_place(f"https://example.org/a.pth{end}")


def test_a_file_is_fetched_once_and_kept_under_its_digest(server, tmp_path: Path) -> None:
    address, asked = server
    place = downloads.checkpoint_place(f"{address}#sha256={DIGEST.upper()}")
    paths = [downloads.fetched(place) for _ in range(2)]
    assert paths[0] == paths[1] == tmp_path / "cache" / "checkpoints" / f"{DIGEST}.pth"
    assert paths[0].read_bytes() == CONTENT and asked == ["/a.pth"]


def test_a_kept_file_that_changed_is_fetched_again(server) -> None:
    address, asked = server
    place = downloads.checkpoint_place(f"{address}#sha256={DIGEST}")
    downloads.fetched(place).write_bytes(b"weight\x00")
    assert downloads.fetched(place).read_bytes() == CONTENT and len(asked) == 2


def test_a_file_of_another_digest_is_refused_and_not_kept(server, tmp_path: Path) -> None:
    address, _ = server
    wrong = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(InputError) as error:
        downloads.fetched(downloads.checkpoint_place(f"{address}#sha256={wrong}"))
    only_line(error, address, wrong, DIGEST, "#sha256=")
    assert list((tmp_path / "cache" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("place", ["/missing.pth", ""])
def test_what_cannot_be_fetched_is_one_line(server, place: str) -> None:
    address = server[0].replace("/a.pth", place) if place else "http://127.0.0.1:9/a.pth"
    with pytest.raises(InputError) as error:
        downloads.fetched(downloads.checkpoint_place(f"{address}#sha256={DIGEST}"))
    only_line(error, address, "cannot be fetched", "by hand")


def test_fine_tuning_starts_from_a_url_as_from_the_file(server, tmp_path: Path) -> None:
    task = labelled_file(tmp_path / "task.hdf5", counts={"train": 4, "val": 4})
    words = [*CLASSIFIER, "--dataset", task, "--lr", 0, "--min_lr", 0, "--output_dir"]
    assert call(STAGES[2], *words, tmp_path / "first", "--seed", 1) == 0
    weights = (tmp_path / "first" / "checkpoint.pth").read_bytes()
    (tmp_path / "served" / "a.pth").write_bytes(weights)
    url = f"{server[0]}#sha256={hashlib.sha256(weights).hexdigest()}"
    assert call(STAGES[2], *words, tmp_path / "second", "--finetune", url) == 0
    models = [checkpoint(tmp_path / name / "checkpoint.pth")["model"] for name in ("first", "second")]
    assert all((models[0][key] == models[1][key]).all() for key in models[0])
