"""Read the commands, snippets and files of a Markdown document, and run them in a reader's folder.

A fenced block's language says what it holds. `bash`: commands. `python`: a snippet. `text`: lines that the blocks
before it print, numbers apart; `text example` is not compared. `csv`, `json`: a file, named by the last inline code
before. Inline code that starts with `python` or `torchrun` is a command as well.

Bash runs a block with `python` and `torchrun` replaced by functions that hand over their words and wait. Each call
runs in a process forked from one that has imported the libraries; torchrun's run as one process.
"""

import argparse
import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch.distributed.run import get_args_parser

LIMIT = 900  # seconds for a call, on a machine that does much else
ITEM = re.compile(r"^```(\w+)( example)?[^\n]*\n(.*?)^```|`((?:python|torchrun) [^`]+)`", re.DOTALL | re.MULTILINE)
# Calls of these are only parsed: they need data that are not here, or have tests that run them.
ONLY_PARSED = re.compile(
    r"benchmarks/|make_TU(AB|EV)|make_SEEDV|make_moabb|make_recipe.py [^e]|convert_pickles"
    r"|run_inference.py check|^demo$"
)
STUBS = """
python() { printf '%q ' "$@" >&$CALLS; echo >&$CALLS; read -r code <&$ANSWERS; return $code; }
python3() { python "$@"; }; torchrun() { python torchrun "$@"; }; make() { command make --dry-run "$@"; }
srun() { "$@"; }; scontrol() { echo node1; }; rsync() { :; }; source() { :; }
"""
# Flags that make a run small, by a pattern of its words. argparse takes the last one of a flag.
SMALL = {
    r"run_(vqnsp|labram|class)": "--epochs 1 --warmup_epochs 0 --num_workers 0 --device cpu --batch_size 4",
    r"run_.*total_batch_size": "--total_batch_size 8",
    r"run_(vqnsp|labram)": "--time_window 1 --window_stride 800",
    r"summarize_results": "--draws 20",
    r"run_vqnsp": "--model vqnsp_encoder_tiny_decoder_1x200x4 --codebook_n_emd 16",
    r"run_labram": "--model labram_tiny_patch200_1600_8k_vocab --tokenizer_model vqnsp_encoder_tiny_decoder_1x200x4",
    r"run_class": "--model labram_tiny_patch200_200",
    r"dataset_maker/(make_|convert_)": "--jobs 1",
}


@dataclass(frozen=True)
class Item:
    """A command, snippet, file or output of a document. kind: its language."""

    kind: str
    text: str
    line: int
    name: str  # of a file


def items(text: str) -> Iterator[Item]:
    """Yield what a document asks its reader to do, in order."""
    for found in ITEM.finditer(text):
        language, example, block, command = found.groups()
        names = re.findall(rf"`([\w./-]+\.{language})`", text[: found.start()])
        if not example:
            line = text.count("\n", 0, found.start()) + 1
            yield Item(language or "bash", block or command.replace("\n", " "), line, names[-1] if names else "")


def same(words: Sequence[str]) -> str:
    """Return what makes a call another one: its words without numbers and names of outputs."""
    return re.sub(r"\d+|(--(output|log)_dir[ =])\S+", r"\1", " ".join(words))


def shape(line: str) -> str:
    """Return a line without its numbers and the width of its blanks."""
    return " ".join(re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", line).split())


def _call(words: Sequence[str], folder: Path, printed: Path, only_parse: bool) -> None:
    """Run `python words...`, or a snippet if there is one word, in this process. Its output goes to a file."""
    with printed.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if list(words[:2]) == ["-m", "pip"]:  # the environment of the tests stays as it is
        return
    os.chdir(folder)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)  # models are tiny: a second thread waits more than it works
    module = words[0] == "-m"
    place = folder if module or len(words) == 1 else folder / Path(words[0]).parent
    sys.argv, sys.path[0:0] = list(words[1:] if module else words), [str(place)]
    if len(words) == 1:
        exec(compile(words[0], "snippet", "exec"), {"__name__": "__main__"})
        return
    original = argparse.ArgumentParser.parse_args

    def parse_and_end(self: argparse.ArgumentParser, *args: Any, **options: Any) -> NoReturn:
        original(self, *args, **options)
        sys.exit(0)

    with patch.object(argparse.ArgumentParser, "parse_args", parse_and_end if only_parse else original):
        if module:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")


class Reader:
    """Somebody who does what documents say. folder: a copy of the project and the reader's data."""

    def __init__(self, folder: Path) -> None:
        """Start the process that imports the libraries."""
        self.folder, self.printed = folder, folder.parent / "printed"
        self.done: set[str] = set()  # calls that need not be run again, only parsed
        self.context = multiprocessing.get_context("forkserver")
        libraries = ["torch", "timm", "h5py", "mne", "scipy.signal", "sklearn.metrics", "matplotlib.pyplot", "pandas"]
        self.context.set_forkserver_preload([*libraries, "tensorboardX", "torch.distributed.run"])

    def read(self, text: str) -> list[str]:
        """Do everything that a document says. Returns what went wrong, an entry for each item."""
        lines, wrong = set[str](), list[str]()
        for item in items(text):
            self.printed.write_text("")
            failure = ""
            if item.kind == "text":
                missing = [line for line in map(shape, item.text.splitlines()) if line not in lines]
                failure = f"is not printed: {missing}" if missing else ""
                lines = set()
            elif item.kind in ("csv", "json"):
                (self.folder / item.name).write_text(item.text)
            elif item.kind == "python":
                failure = self.python([item.text])
            else:
                assert item.kind == "bash", f"line {item.line}: unknown kind of block {item.kind}"
                failure = self.bash(item.text)
            printed = self.printed.read_text(errors="replace").splitlines()
            lines |= set(map(shape, printed))
            if failure:
                wrong.append("\n".join([f"line {item.line}: {item.text}", failure, *printed[-15:]]))
        return wrong

    def bash(self, text: str) -> str:
        """Run commands and the calls of Python in them up to the first that fails; return what went wrong."""
        (asked, ask), (answered, answer) = os.pipe(), os.pipe()
        with self.printed.open("a") as file:
            shell = subprocess.Popen(
                ["bash", "-e", "-c", f"{STUBS}\n{text}"],
                cwd=self.folder,
                env={**os.environ, "CALLS": str(ask), "ANSWERS": str(answered)},
                pass_fds=(ask, answered),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        os.close(ask)
        os.close(answered)
        failures = []
        with os.fdopen(asked) as calls, os.fdopen(answer, "w") as answers:
            for call in calls:  # ends with bash
                failure = self.python(shlex.split(call))
                failures += [f"{call}{failure}"] if failure else []
                print(len(failures), file=answers, flush=True)
        code = shell.wait(LIMIT)
        return "; ".join(failures) or (f"bash ends with {code}" if code else "")

    def python(self, words: Sequence[str]) -> str:
        """Run a call or a snippet, smaller than it stands; return what went wrong. A call like another is parsed."""
        if words[0] == "torchrun":
            args = get_args_parser().parse_args(words[1:])
            words = [args.training_script, *args.training_script_args]
        called = words[1] if words[0] == "-m" else " ".join(words[:2])
        only_parse = same(words) in self.done or bool(ONLY_PARSED.search(called))
        self.done.add(same(words))
        if not only_parse and len(words) > 1:
            text = " ".join(words)
            words = [*words, *(flag for key, flags in SMALL.items() if re.search(key, text) for flag in flags.split())]
        process = self.context.Process(target=_call, args=(words, self.folder, self.printed, only_parse))
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
        return f"ends with {process.exitcode}" if process.exitcode != 0 else ""
