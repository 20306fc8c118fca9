"""Runs over the stand-in, in processes that are copies of one: `python process.py REQUESTS.json`.

A request is one of `ranks.be_rank`, and more: `processes`; `numbers`, whether there are real ones; `listen`, the calls
of the update between which waits and launches are noted; `sanitizer`, whether torch looks for races between streams;
`variables` of the environment, `rank_variables` of some ranks. Each rank leaves `gpu-RANK.json` in its folder. The
codes with which the ranks end stand in `codes.json`.
"""

import collections
import contextlib
import ctypes
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.cuda._sanitizer
import torch.distributed as dist
from torch._dynamo.utils import counters

from nullgpu.arithmetic import Arithmetic, Graph
from optim_factory import Update
from ranks import SERVER, TESTS, be_rank, together
from run_helpers import ROOT

COUNTS = ("pinned_copy", "collective", "compilation", "replay")


def main(requests: list[dict[str, Any]]) -> None:
    """Run all requests, one after the other."""
    SERVER.set_forkserver_preload(["nullgpu.process"])
    forkserver.ensure_running()  # before `ranks` makes one without the stand-in
    for request in requests:
        folder = Path(request["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        codes = together(be_process, (request,), processes=request.get("processes", 1))
        (folder / "codes.json").write_text(json.dumps(codes))


def be_process(request: Mapping[str, Any]) -> None:
    """Be one rank."""
    rank = os.environ.get("RANK", "0")
    os.environ.update(request.get("variables", {}) | request.get("rank_variables", {}).get(rank, {}))
    found: dict[str, Any] = {"waits": [], "contexts": []}
    try:
        with contextlib.ExitStack() as stack:
            if request.get("sanitizer"):
                torch.cuda._sanitizer.enable_cuda_sanitizer()
            if request.get("numbers"):
                stack.enter_context(patch.object(torch.cuda, "CUDAGraph", Graph))
            stack.enter_context(Arithmetic() if request.get("numbers") else objects_by_gloo())
            if "listen" in request:
                stack.enter_context(noted_waits(*request["listen"], found))
            be_rank(request)
    finally:
        library = ctypes.CDLL(None)
        if torch.cuda.is_initialized():
            found["contexts"] = [d for d in range(torch.cuda.device_count()) if library.nullgpu_context(d)]
        found["graphs"] = counters["stats"]["unique_graphs"]
        found["peak"] = torch.cuda.max_memory_allocated() if found["contexts"] else 0
        found |= {name: library.nullgpu_count(name.encode()) for name in COUNTS}
        (Path(request["folder"]) / f"gpu-{rank}.json").write_text(json.dumps(found))


@contextlib.contextmanager
def objects_by_gloo() -> Iterator[None]:
    """Exchange objects on CPUs: their sizes would be read from GPU memory that no kernel wrote."""
    gather = dist.all_gather_object

    def by_gloo(gathered: list[Any], own: Any, group: Any = None) -> None:
        gather(gathered, own, group=group or dist.new_group(backend="gloo"))

    with patch.object(dist, "all_gather_object", by_gloo):
        yield


@contextlib.contextmanager
def noted_waits(first: int, last: int, found: dict[str, Any]) -> Iterator[None]:
    """Note launches, and kind, place and number of waits and of copies of pageable memory, between two of the calls."""
    waits: collections.Counter[tuple[str, str]] = collections.Counter()
    call, library, calls = Update.__call__, ctypes.CDLL(None), 0

    def note(kind: bytes) -> None:
        own = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(ROOT))]
        places = [f"{Path(f.filename).name}:{f.name}" for f in own if not f.filename.startswith(str(TESTS))]
        waits[kind.decode(), " < ".join(places[:-4:-1])] += 1

    listener = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(note)

    def counted(update: Update, loss: torch.Tensor) -> bool:
        nonlocal calls
        if calls in (first, last):
            library.nullgpu_listen(listener if calls == first else None)
            found["launches"] = library.nullgpu_count(b"launch") - found.get("launches", 0)
        calls += 1
        return call(update, loss)

    with patch.object(Update, "__call__", counted):
        try:
            yield
        finally:
            library.nullgpu_listen(None)
            found |= {"calls": calls, "waits": [[*where, n] for where, n in waits.most_common()]}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
