"""A reader who types every command of the README, one after the other, in a folder of their own.

The folder is a copy of the project with stand-ins for the reader's data (`readme_data.py`), `.venv` an environment with
this one's packages, made in the reader's eyes: `bootstrap.py` finds it up to date. Each command goes to bash as it
stands; environment and folder carry over to the next. Only `python3` is there until the README activates `.venv`.

What would take long at its own size gets further flags behind its own words, or variables: ADDED and VARIABLES, and
nothing else. A marked command is parsed; one for 8 GPUs that has an output folder is then run in one process, because
later commands need what it leaves.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import readme_text
from readme_data import SNIPPETS_BEGIN, stand_ins
from readme_text import ROOT, Item

LIMIT = 240  # seconds for a command
NOT_COPIED = (".git", ".venv", ".ci", "__pycache__", ".*_cache", "checkpoints", "log", "data", "demo_run")
# A copy of these would start the next session from the `make test` of this one.
NOT_COPIED += ("test_readme.py", "readme_*.py")

# A pattern -> flags behind the commands that it fits, in this order; argparse takes the last one of a flag.
ADDED = {
    r"\brun_(vqnsp_training|labram_pretraining|class_finetuning)\.py": "--epochs 1 --warmup_epochs 0 --num_workers 0",
    r"\brun_(vqnsp_training|labram_pretraining)\.py": "--time_window 1",
    r"\brun_class_finetuning\.py": "--batch_size 4",
    r"\bdataset_maker/(make_|convert_)": "--jobs 1",
    # The README's ways to start stage 2 are alternatives, and their default folder is the first one's.
    r"run_labram_pretraining\.py(?!.*--output_dir)": "--output_dir checkpoints/one_gpu",
    r"pytest tests/test_fuzz\.py": "-k a_mutant_is_always_the_same",
    r"\bbenchmarks/convert\.py": "--jobs 1 --repeats 1",
    r"\bbenchmarks/long_recording\.py": "--hours 0.01 --electrodes 2",
    r"\bbenchmarks/speed\.py": "--tiny --batch 2 --cases b --geometries 23x10",
    r"\bbenchmarks/embedding\.py": "--minutes 0.5 --electrodes 2 --repeats 1 --rate 250 "
    "--model labram_tiny_patch200_200",
    r"\bpip install\b": "--dry-run",
}
# Of the tests that a command starts, a few are enough to show that it does.
VARIABLES = {
    r"^make test|bootstrap\.py test": {"PYTEST_ADDOPTS": "tests/test_errors.py"},
    r"^make coverage|bootstrap\.py coverage": {"PYTEST_ADDOPTS": "tests/test_errors.py --cov-fail-under 0"},
    r"^make soak|bootstrap\.py soak": {"PYTEST_ADDOPTS": "-k processes_begin_when_all_are_made"},
}
# What takes no part: libraries are in memory already, so that a command need not load them (`readme_python.py`), except
# in processes that get open files, or whose memory is limited.
PYTHON = """#!/bin/sh
case "$1" in
  */worker.py) ;;
  *.py) exec {python} -I -S {server} run {socket} "$0" "$@" ;;
  -m) case "$2" in demo|dataset_maker.*|pytest) exec {python} -I -S {server} run {socket} "$0" "$@" ;; esac ;;
esac
exec {python} "$@"
"""


@dataclass(frozen=True)
class Ended:
    """How a command or snippet ended: what stands in the way, if anything, and what it printed."""

    failure: str
    printed: str


def environment(folder: Path) -> None:
    """Make `.venv` with this interpreter's packages and the stamps of `bootstrap.py`, and `python3` outside of it."""
    place = folder / ".venv"
    venv.create(place, with_pip=False)
    for script in Path(sys.executable).parent.iterdir():  # pip and others
        if not (place / "bin" / script.name).exists() and not script.name.startswith(("python", "activate")):
            (place / "bin" / script.name).symlink_to(script)
    server, socket = Path(__file__).with_name("readme_python.py"), folder.parent / "python.socket"
    quoted = {name: shlex.quote(str(value)) for name, value in (("python", sys.executable), ("server", server))}
    quoted["socket"] = shlex.quote(str(socket))
    for name in ("python", "python3"):
        (place / "bin" / name).unlink()
        (place / "bin" / name).write_text(PYTHON.format(**quoted))
        (place / "bin" / name).chmod(0o755)
    constraints = (folder / "constraints.txt").read_bytes()
    for stamp, file in (("requirements", "requirements.txt"), ("further-requirements", "benchmarks/requirements.txt")):
        digest = hashlib.sha256((folder / file).read_bytes() + constraints).hexdigest()
        (place / f"{stamp}.sha256").write_text(digest)
    outside = folder.parent / "bin"
    outside.mkdir()
    (outside / "python3").symlink_to(sys._base_executable)


class Session:
    """Does the items of a README in order, each once."""

    def __init__(self, folder: Path, items: list[Item]) -> None:
        """folder: the reader's; items: of the README."""
        self.folder, self.items = folder, items
        self.ended: list[Ended] = []
        kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LABRAM_CACHE", "LANG") if name in os.environ}
        kept |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        path = f"{folder.parent / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        self.variables = {**kept, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.variables |= {"PYTEST_XDIST_AUTO_NUM_WORKERS": "1", "PWD": str(folder)}
        self.notebook: subprocess.Popen[str] | None = None

    def upto(self, number: int) -> Ended:
        """Do the items up to this one; return how this one ended."""
        while len(self.ended) <= number:
            item = self.items[len(self.ended)]
            self.ended.append(getattr(self, item.kind)(item))
        return self.ended[number]

    def command(self, item: Item) -> Ended:
        """Parse or run a command."""
        text = item.text
        try:
            if item.mark:
                readme_text.check_marked(text)
                if item.mark != "8 GPUs" or "--output_dir" not in text:
                    return Ended("", "")
                ((_, script, words),) = readme_text.calls(text)
                text = shlex.join(["python", script, *words])
            return self.done_by_make(text) or self.run(with_added(text), variables_for(text))
        except ValueError as error:
            return Ended(str(error), "")

    def done_by_make(self, text: str) -> Ended | None:
        """Return how a make target ended that has run this very command, if one has."""
        for item, ended in zip(self.items, self.ended, strict=False):
            if item.kind == "command" and item.text.startswith("make "):
                said = subprocess.run(["make", "-n", *item.text.split()[1:]], cwd=self.folder, capture_output=True)
                if said.stdout.decode().strip() == f"{text} --venv .venv":  # the default, said aloud
                    return ended
        return None

    def run(self, text: str, variables: dict[str, str]) -> Ended:
        """Give a command to bash; keep its environment and folder for the next."""
        after = self.folder.parent / "environment"
        after.unlink(missing_ok=True)
        command = ["bash", "-c", 'eval "$1"; code=$?; env -0 > "$2"; exit $code', "bash", text, str(after)]
        with (
            (self.folder.parent / "printed").open("w+", errors="replace") as file,
            subprocess.Popen(
                command,
                cwd=self.variables["PWD"],
                env=self.variables | variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            ) as process,
        ):
            try:
                code: int | str = process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = f"none within {LIMIT} s"
            file.seek(0)
            printed = file.read()
        if after.is_file():
            pairs = [pair.split("=", 1) for pair in after.read_text().split("\0") if "=" in pair]
            passing = {"_", "SHLVL", "OLDPWD", *variables}
            self.variables = {name: value for name, value in pairs if name not in passing}
        last = "\n".join(printed.splitlines()[-20:])
        return Ended(f"$ {text}\nexit code {code}; its last lines:\n{last}" if code else "", printed)

    def snippet(self, item: Item) -> Ended:
        """Execute a snippet after those before it, as in a notebook."""
        if self.notebook is None:
            python = shutil.which("python", path=self.variables["PATH"])
            if python is None:
                return Ended("no `python` yet: the README has to activate `.venv` before", "")
            self.notebook = subprocess.Popen(
                [python, str(Path(__file__).with_name("readme_python.py")), "snippets"],
                cwd=self.variables["PWD"],
                env=self.variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self.execute("the reader's own", SNIPPETS_BEGIN)
        well, printed = self.execute(f"README.md, line {item.line}", item.text)
        last = "\n".join(printed.splitlines()[-20:])
        return Ended("" if well else f"{item.text}\nits last lines:\n{last}", printed)

    def execute(self, name: str, text: str) -> tuple[bool, str]:
        """Have the snippets' interpreter execute a text; return whether it went well and what it printed."""
        assert self.notebook and self.notebook.stdin and self.notebook.stdout, "pipes"
        print(json.dumps([name, text]), file=self.notebook.stdin, flush=True)
        answer = self.notebook.stdout.readline()
        return tuple(json.loads(answer)) if answer else (False, "the interpreter died")

    def file(self, item: Item) -> Ended:
        """Write a file as it stands."""
        path = Path(self.variables["PWD"], item.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(item.text)
        return Ended("", "")

    def output(self, item: Item) -> Ended:
        """Compare what the README shows with what was printed since it last did, numbers apart."""
        printed: set[str] = set()
        for other, ended in zip(self.items, self.ended, strict=False):
            printed = set() if other.kind == "output" else printed | set(map(shape, ended.printed.splitlines()))
        missing = [line for line in item.text.splitlines() if shape(line) not in printed]
        return Ended("its lines, numbers apart, are not printed:\n" + "\n".join(missing) if missing else "", "")

    def close(self) -> None:
        """End the interpreter of the snippets."""
        if self.notebook is not None:
            assert self.notebook.stdin, "a pipe"
            self.notebook.stdin.close()
            self.notebook.wait(LIMIT)


def shape(line: str) -> str:
    """Return a line without its numbers and the width of its blanks."""
    return " ".join(re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", line).split())


def with_added(text: str) -> str:
    """Return a command with the flags of ADDED behind it. Raises ValueError if it is more than one command."""
    added = [flags for pattern, flags in ADDED.items() if re.search(pattern, text, re.DOTALL)]
    if added and set(readme_text.words_of(text)) & readme_text.OPERATORS:
        raise ValueError(f"more than one command, so that `{' '.join(added)}` cannot be added: {text}")
    return " ".join([text, *added])


def variables_for(text: str) -> dict[str, str]:
    """Return the variables of VARIABLES for a command."""
    return {k: v for pattern, values in VARIABLES.items() if re.search(pattern, text) for k, v in values.items()}


@contextmanager
def session(place: Path, items: list[Item]) -> Iterator[Session]:
    """Give a reader a folder within this place, and what they have in it."""
    folder = place / "LaBraM"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
    environment(folder)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, str(Path(__file__).with_name("readme_python.py")), "serve", str(place / "python.socket")]
    with subprocess.Popen(words, env=variables, start_new_session=True) as server:
        try:
            stand_ins(folder)
            while not (place / "python.socket").exists() and server.poll() is None:
                time.sleep(0.05)
            reader = Session(folder, items)
            yield reader
            reader.close()
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            shutil.rmtree(folder)  # a gigabyte
