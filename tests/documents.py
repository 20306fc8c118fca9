"""Read the commands, snippets and files of a Markdown document, and run them in a reader's folder.

A fenced block's language says what it holds. `bash`: commands, which are run one after the other. `python`: a
snippet. `text`: lines that the commands and snippets before it print, numbers apart; `text example` is not compared.
`csv`, `json`: a file, named by the last inline code of the paragraph before. Inline code that starts with `python`
or `torchrun` is a command as well.

Bash runs a command with `python` and `torchrun` replaced by functions that only record their words. Each recorded
call then runs in a process forked from one that has imported the libraries; torchrun's run as one process.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

from markdown_it import MarkdownIt
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).parents[1]
FOLDERS = {path.parent.name for path in ROOT.glob("*/*.py")}  # of the project, not of its user
LIMIT = 900  # seconds for a call, on a machine that does much else
FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
# Calls of these are only parsed: they need data that are not here, or have tests that run them.
ONLY_PARSED = re.compile(r"benchmarks/|make_TU(AB|EV)|make_SEEDV|convert_pickles|^demo$")
STUBS = """
python() { printf '%s\\0' "$@" $'\\n' >> "$CALLS"; }
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
    """A command, snippet, file or output of a document. name: the file's."""

    kind: str
    text: str
    line: int
    name: str = ""


def tokens(text: str) -> Iterator[Any]:
    """Yield the Markdown tokens of a document, those of running text one by one."""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        yield token
        yield from token.children or ()


def items(text: str) -> Iterator[Item]:
    """Yield what a document asks its reader to do, in order."""
    paragraph, line = "", 0
    for token in tokens(text):
        line = token.map[0] + 1 if token.map else line
        language, _, more = token.info.partition(" ")
        if token.type == "inline":
            paragraph = token.content
        elif token.type == "code_inline" and re.match(r"(python3?|torchrun) ", token.content):
            yield Item("command", token.content, line)
        elif token.type == "fence" and language == "bash":
            yield from commands(token.content, line + 1)
        elif token.type == "fence" and language == "python":
            yield Item("snippet", token.content, line + 1)
        elif token.type == "fence" and language in ("csv", "json"):
            yield Item("file", token.content, line + 1, re.findall(rf"`([\w./-]+\.{language})`", paragraph)[-1])
        elif token.type == "fence" and language == "text" and not more:
            yield Item("output", token.content, line + 1)


def commands(block: str, line: int) -> Iterator[Item]:
    """Cut a block into commands. A command is as many lines as bash needs; a script with `#!` is one command."""
    if block.startswith("#!"):
        yield Item("command", block, line)
        return
    text = ""
    for number, row in enumerate(block.splitlines(), line):
        text += f"{row}\n"
        complete = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True).returncode == 0
        if complete and not row.endswith("\\"):
            if not row.startswith("#") and row.strip():
                yield Item("command", text, number)
            text = ""
    assert not text, f"line {line}: bash finds no end of this command: {text}"


def flags_named(text: str) -> set[str]:
    """Return the flags in inline code and in commands, those of other programs left out."""
    codes = [token for token in tokens(text) if token.type in ("code_inline", "code_block") or token.info == "bash"]
    lines = [line.strip() for token in codes for line in token.content.splitlines()]
    return {flag for line in lines if not line.startswith(("pip ", "#SBATCH")) for flag in FLAG.findall(line)}


def declared_flags(script: Path) -> set[str]:
    """Run a script up to where it parses its command line; return the flags of its parser and of its verbs."""
    parsers: list[argparse.ArgumentParser] = []

    def stop(self: argparse.ArgumentParser, *args: Any, **options: Any) -> NoReturn:
        parsers.append(self)
        sys.exit()

    with (
        patch.object(argparse.ArgumentParser, "parse_args", stop),
        patch.object(sys, "argv", [str(script)]),
        patch.object(sys, "path", [str(script.parent), *sys.path]),
        contextlib.suppress(SystemExit),
    ):
        runpy.run_path(str(script), run_name="__main__")
    assert parsers, f"{script} parses no command line"
    return flags_of(parsers[0])


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the flags of a parser and of its verbs."""
    verbs = [action.choices.values() for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    flags = {flag for action in parser._actions for flag in action.option_strings}
    return flags.union(*(flags_of(verb) for verb in itertools.chain(*verbs)))


def files_named(text: str) -> set[str]:
    """Return relative links, and inline code that names a Python file, a document or a folder of the project."""
    links = {str(token.attrs["href"]).partition("#")[0] for token in tokens(text) if token.type == "link_open"}
    codes = {token.content for token in tokens(text) if token.type == "code_inline"}
    paths = {code for code in codes if re.fullmatch(rf"[\w./*-]+\.(py|md)|({'|'.join(FOLDERS)})/[\w./*-]*", code)}
    return {name for name in links | paths if name and "://" not in name and "NAME" not in name}


def _call(words: Sequence[str], folder: Path, printed: Path, only_parse: bool) -> None:
    """Run `python words...`, or a snippet if there is one word, in this process. Its output goes to a file."""
    with printed.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
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
    """Somebody who does what a document says. folder: a copy of the project and the reader's data."""

    def __init__(self, folder: Path) -> None:
        """Start the process that imports the libraries."""
        self.folder, self.printed, self.calls = folder, folder.parent / "printed", folder.parent / "calls"
        self.wrong: dict[str, list[str]] = {}
        self.context = multiprocessing.get_context("forkserver")
        libraries = ["torch", "timm", "h5py", "mne", "scipy.signal", "sklearn.metrics", "matplotlib.pyplot", "pandas"]
        self.context.set_forkserver_preload([*libraries, "tensorboardX", "torch.distributed.run"])

    def read(self, document: Path) -> list[str]:
        """Do everything that a document says. Returns what went wrong, an entry for each item."""
        lines, wrong = set[str](), list[str]()
        for item in items(document.read_text(encoding="utf-8")):
            self.printed.write_text("")
            if item.kind == "output":
                missing = [line for line in map(shape, item.text.splitlines()) if line not in lines]
                failure = f"is not printed: {missing}" if missing else ""
                lines = set()
            elif item.kind == "file":
                failure = "" if (self.folder / item.name).write_text(item.text) else "is empty"
            else:
                failure = self.python([item.text]) if item.kind == "snippet" else self.command(item.text)
            printed = self.printed.read_text(errors="replace").splitlines()
            lines |= set(map(shape, printed))
            if failure:
                wrong.append("\n".join([f"{document.name}, line {item.line}: {item.text}", failure, *printed[-15:]]))
        return wrong

    def command(self, text: str) -> str:
        """Give a command to bash, then run the calls of Python that it recorded; of calls for other seeds the last."""
        self.calls.write_text("")
        with self.printed.open("a") as file:
            ended = subprocess.run(
                ["bash", "-c", f"{STUBS}\n{text}"],
                cwd=self.folder,
                env={**os.environ, "CALLS": str(self.calls)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=LIMIT,
            )
        calls = [call.split("\0")[:-1] for call in self.calls.read_text().split("\n\0")[:-1]]
        failures = [f"bash ends with {ended.returncode}"] if ended.returncode else []
        different = {shape(" ".join(call)): call for call in calls}
        return "; ".join(filter(None, [*failures, *map(self.python, different.values())]))

    def python(self, words: Sequence[str]) -> str:
        """Run a call or a snippet, smaller than it stands; returns what went wrong."""
        if words[0] == "torchrun":
            args = get_args_parser().parse_args(words[1:])
            words = [args.training_script, *args.training_script_args]
        name = words[1] if words[0] == "-m" else words[0]
        only_parse = bool(ONLY_PARSED.search(name))
        if not only_parse and len(words) > 1:
            text = " ".join(words)
            words = [*words, *(flag for key, flags in SMALL.items() if re.search(key, text) for flag in flags.split())]
        process = self.context.Process(target=_call, args=(words, self.folder, self.printed, only_parse))
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
        return f"ends with {process.exitcode}" if process.exitcode != 0 else ""


def shape(line: str) -> str:
    """Return a line without its numbers and the width of its blanks."""
    return " ".join(re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", line).split())
