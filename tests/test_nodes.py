"""Two nodes: two torchrun agents that meet at a c10d rendezvous train all three stages like two processes of one node.

The agents share a machine here but no folder: each has its own working directory, to which the same command line leads.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from recovery import assert_same_training
from run_helpers import (
    CLASSIFIER,
    MASKED,
    ROOT,
    TOKENIZER,
    clean_environment,
    contents,
    free_port,
    kill_tree,
    labelled_file,
    log,
    pretraining_file,
    start,
)

DRIVER = ROOT / "tests" / "process_driver.py"
NAMES = ("tokenizer", "masked", "classifier")
STEPS = 4
TIMEOUT = 120  # seconds


def write_plan(path: Path, data: Path) -> None:
    """Write the plan of all stages, paths of results relative to the working directory.

    The first stage's group meets where torchrun says, which only works once in a process.
    """
    batch = ["--batch_size", "2"]
    train = ["--train_data", str(data / "train"), "--val_data", str(data / "val"), *batch]
    weights = {name: str(Path("out") / name / "checkpoint.pth") for name in NAMES}
    task = ["--dataset", str(data / "task.hdf5"), "--finetune", weights["masked"], *batch]
    commands = {
        "tokenizer": ("run_vqnsp_training", [*TOKENIZER, *train]),
        "masked": ("run_labram_pretraining", [*MASKED, *train, "--tokenizer_weight", weights["tokenizer"]]),
        "classifier": ("run_class_finetuning", [*CLASSIFIER, *task]),
    }
    plan: list[dict[str, Any]] = [
        {"script": script, "flags": [*words, "--output_dir", str(Path("out") / name)], "record": name}
        for name, (script, words) in commands.items()
    ]
    for step in plan[1:]:
        step["port"] = free_port()
    path.write_text(json.dumps(plan))


class Nodes(NamedTuple):
    """Working directories."""

    one: Path  # of one node with two processes
    first: Path  # of two nodes: the one with process 0
    second: Path


def agents(words: list[Any], folders: list[Path]) -> list[subprocess.CompletedProcess[str]]:
    """Run `words` in one process of each of several agents, each in its own folder; return how the agents ended.

    After TIMEOUT seconds agents and their processes are killed.
    """
    env = clean_environment()
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(folders)}", "--nproc_per_node=1"]
    command += ["--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}", "--rdzv_id=nodes"]
    command += ["--local_addr=localhost", *map(str, words)]
    nodes = [
        subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for folder in folders
    ]
    end = time.monotonic() + TIMEOUT
    shown = []
    for node in nodes:
        try:
            shown.append(node.communicate(timeout=max(end - time.monotonic(), 1))[0])
        except subprocess.TimeoutExpired:
            kill_tree(node.pid)
            shown.append(f"killed after {TIMEOUT} s\n{node.communicate()[0]}")
    return [subprocess.CompletedProcess(command, node.returncode, out) for node, out in zip(nodes, shown, strict=True)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Nodes:
    """All stages on two nodes, and on one node with two processes."""
    root = tmp_path_factory.mktemp("nodes")
    data = root / "data"
    pretraining_file(data / "train" / "a.hdf5", seconds=(16, 15))  # 15 windows of two seconds: 4 steps of 4
    pretraining_file(data / "val" / "a.hdf5", seconds=(6,), seed=5)
    labelled_file(data / "task.hdf5", counts={"train": 4 * STEPS, "val": 5, "test": 3})
    one, *two = [root / name for name in ("one", "a", "b")]
    for folder in (one, *two):
        folder.mkdir()
    plan = root / "plan.json"
    write_plan(plan, data)
    start([DRIVER, plan], cwd=one, processes=2)
    ended = agents([DRIVER, plan], two)
    assert [agent.returncode for agent in ended] == [0, 0], "\n\n".join(agent.stdout for agent in ended)
    first, second = sorted(two, key=lambda folder: not (folder / "tokenizer.0.pt").is_file())  # agents draw ranks
    return Nodes(one, first, second)


@pytest.mark.parametrize("name", NAMES)
def test_both_nodes_take_the_same_steps_each_with_its_own_windows(nodes: Nodes, name: str) -> None:
    paths = nodes.first / f"{name}.0.pt", nodes.second / f"{name}.1.pt"
    mine, other = (torch.load(path, weights_only=True) for path in paths)
    assert len(set(mine["digests"])) == STEPS
    assert mine["digests"] == other["digests"]
    assert not torch.equal(torch.stack(mine["losses"]), torch.stack(other["losses"]))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_first_node_writes(nodes: Nodes, name: str) -> None:
    written = contents(nodes.first / "out" / name)
    assert {"checkpoint.pth", "log.txt"} <= written.keys() == contents(nodes.one / "out" / name).keys()
    assert len(log(nodes.first / "out" / name)) == 1
    left = {path.name for path in nodes.second.rglob("*") if path.is_file()}
    assert left == {f"{each}.1.pt" for each in NAMES}, "more than this test's own records"


@pytest.mark.parametrize("name", NAMES)
def test_two_nodes_give_the_log_and_the_checkpoint_of_one_node_bit_by_bit(nodes: Nodes, name: str) -> None:
    assert_same_training(nodes.one / "out" / name, nodes.first / "out" / name)


@pytest.mark.nightly
def test_an_error_on_one_node_ends_the_other_one_too_and_is_shown_once(tmp_path: Path) -> None:
    folders = [tmp_path / "with", tmp_path / "without"]
    pretraining_file(folders[0] / "data" / "a.hdf5", seconds=(4,))
    folders[1].mkdir()
    words = [ROOT / "run_vqnsp_training.py", *TOKENIZER, "--train_data", "data", "--output_dir", "out"]
    ended = agents(words, folders)
    shown = "\n\n".join(agent.stdout for agent in ended)
    assert [agent.returncode for agent in ended] == [1, 1], shown
    lines = [line for line in shown.splitlines() if "error: no data found at data: --train_data takes" in line]
    assert len([line for line in lines if "traceback :" not in line]) == 1, shown  # beside torchrun's own summary
    assert str(ROOT / "eeg_data") not in shown, "a traceback of ours"
