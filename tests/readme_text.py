"""What a README tells its reader to type: commands, Python snippets, files; which of them are marked, and rightly.

A fenced block says by its language what it is: `bash` or nothing: commands; `python`: a snippet; `text`: what the
commands and snippets before it print, `text example`: only its form; `csv`, `json`: a file, whose name is the last
inline code with that suffix in the paragraph before. Indented blocks and other languages are problems. A command is
one or more lines that `bash -n` takes as a whole; a block with a `#!` line is one command.

Inline code, in running text or a table, is a command if it is more than a word and its first word, after
`NAME=value`, is one of PROGRAMS. Where the same command stands again, its first place counts.

Three kinds of commands cannot be run here: REASONS. They are marked where the reader sees it, `# needs 8 GPUs` on the
line before a command in a block, `(needs 8 GPUs)` behind inline code; nothing else is marked.
"""

import argparse
import contextlib
import functools
import io
import itertools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from markdown_it import MarkdownIt
from markdown_it.token import Token
from torch.distributed.run import get_args_parser

ROOT = Path(__file__).parents[1]
PROGRAMS = {"python", "python3", "pip", "make", "torchrun", "tensorboard", "bash", "sh", "source", "export", "sbatch"}
PROGRAMS |= {"srun", "scontrol", "git", "cp", "mv", "cd", "mkdir", "ls", "rm", "curl", "wget", "pytest", "ruff", "mypy"}
COMMANDS, SNIPPET, OUTPUT, FILES = ("", "bash"), "python", "text", ("csv", "json")
# Why a command is not run as it stands, and how one knows.
REASONS = {
    "SLURM": re.compile(r"^#SBATCH |\b(sbatch|srun)\b", re.MULTILINE),
    "8 GPUs": re.compile(r"\btorchrun\b[^\n]* --nproc_per_node=8\b"),
    "TUH data": re.compile(r"\bdataset_maker[./]make_TU(AB|EV)\b"),
}
LINE_MARK = re.compile(r"^\s*#\s*needs\s+(.*?)\s*$")
INLINE_MARK = re.compile(r"^\s*\(needs\s+([^)]*)\)")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w-]*")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
OPERATORS = {"&", "&&", "|", "||", ";", ">", ">>", "<", "(", ")"}


@dataclass(frozen=True)
class Item:
    """A command, snippet, file or output of a README."""

    kind: str  # "command", "snippet", "file" or "output"
    text: str
    line: int
    mark: str | None = None
    name: str = ""  # of a file

    def __str__(self) -> str:
        """Short enough for a test's id."""
        first = " ".join(self.text.split())
        return f"line {self.line}: {first[:60]}"


@dataclass
class Readme:
    """What was found. prose: flags that are named outside commands, with their lines."""

    items: list[Item] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    prose: list[tuple[str, int]] = field(default_factory=list)
    codes: list[tuple[str, int]] = field(default_factory=list)  # inline code that is no command
    links: list[tuple[str, int]] = field(default_factory=list)

    def problem(self, line: int, text: str) -> None:
        """Add what is wrong with a line."""
        self.problems.append(f"README.md, line {line}: {text}")

    def add_command(self, text: str, line: int, mark: str | None) -> None:
        """Add a command unless it is there already; its mark must be what it needs."""
        if mark is not None and mark not in REASONS:
            self.problem(line, f"marked `needs {mark}`, which is none of {', '.join(REASONS)}: {text}")
        elif mark != need(text):
            self.problem(line, f"marked `needs {mark}`, but needs {need(text) or 'nothing that is not here'}: {text}")
        if complaint := syntax_error(text):
            self.problem(line, f"bash does not take it: {complaint}: {text}")
        if not any(item.kind == "command" and item.text == text for item in self.items):
            self.items.append(Item("command", text, line, mark))


def need(text: str) -> str | None:
    """Return why a command cannot be run here."""
    return next((reason for reason, sign in REASONS.items() if sign.search(text)), None)


def syntax_error(text: str) -> str:
    """Return what `bash -n` says of a command."""
    ended = subprocess.run(["bash", "-n"], input=f"{text}\n", capture_output=True, text=True, check=False)
    open_end = text.rstrip("\n").endswith("\\")
    return ended.stderr.strip() if ended.returncode else "a line to go on is missing" if open_end else ""


def words_of(text: str) -> list[str]:
    """Split a command as a shell does, operators apart, comments left out; without the assignments in front."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    while words and ASSIGNMENT.match(words[0]):
        del words[0]
    return words


def is_command(code: str) -> bool:
    """Whether inline code is a whole command."""
    words = code.split()
    while words and ASSIGNMENT.match(words[0]):
        del words[0]
    return len(words) > 1 and words[0] in PROGRAMS


def parse(text: str) -> Readme:
    """Read a README's text."""
    readme = Readme()
    paragraph = ""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "fence":
            _read_block(readme, token, paragraph)
        elif token.type == "code_block":
            readme.problem(_line(token), "an indented block: put it into a fence")
        elif token.type == "inline":
            paragraph = token.content
            _read_inline(readme, token)
    return readme


def _line(token: Token) -> int:
    assert token.map, "blocks know their lines"
    return token.map[0] + 1


def _read_block(readme: Readme, token: Token, paragraph: str) -> None:
    """Sort a fenced block by its language."""
    line, (language, *more) = _line(token), token.info.split() or [""]
    if (more and (language, more) != (OUTPUT, ["example"])) or language not in (*COMMANDS, SNIPPET, OUTPUT, *FILES):
        known = "bash, python, text, text example, csv, json"
        readme.problem(line, f"a block of the unknown kind `{token.info.strip()}`: known are {known}")
    elif language in COMMANDS:
        _read_commands(readme, token.content, line + 1)
    elif language == SNIPPET:
        readme.items.append(Item("snippet", token.content, line + 1))
    elif language == OUTPUT and not more:
        readme.items.append(Item("output", token.content, line + 1))
    elif language in FILES:
        names = re.findall(rf"`([\w./-]+\.{language})`", paragraph)
        if names:
            readme.items.append(Item("file", token.content, line + 1, name=names[-1]))
        else:
            readme.problem(line, f"a {language} file without a name: the paragraph before must have `NAME.{language}`")


def _read_commands(readme: Readme, content: str, line: int) -> None:
    """Cut a block into commands, each with the mark in front of it."""
    if content.startswith("#!"):
        marks = [found[1] for found in map(LINE_MARK.match, content.splitlines()) if found]
        readme.add_command(content, line, marks[0] if marks else None)
        return
    lines, mark, text, first = content.splitlines(), None, "", line
    for number, row in enumerate(lines, line):
        found = LINE_MARK.match(row)
        if not text and (found or not row.strip() or row.lstrip().startswith("#")):
            mark = found[1] if found else mark
            continue
        first, text = (first, f"{text}\n{row}") if text else (number, row)
        if not syntax_error(text):
            readme.add_command(text, first, mark)
            mark, text = None, ""
    if text:
        readme.add_command(text, first, mark)
    elif mark is not None:
        readme.problem(line, f"`needs {mark}` stands before no command")


def _read_inline(readme: Readme, token: Token) -> None:
    """Take commands, flags and links from running text or a table's cell."""
    line, children = _line(token), token.children or []
    for child, after in itertools.zip_longest(children, children[1:]):
        line += child.type in ("softbreak", "hardbreak")
        if child.type == "link_open":
            readme.links.append((str(child.attrs["href"]), line))
        if child.type != "code_inline":
            continue
        behind = INLINE_MARK.match(after.content) if after and after.type == "text" else None
        if is_command(child.content):
            readme.add_command(child.content, line, behind[1] if behind else None)
            continue
        if behind:
            readme.problem(line, f"`needs {behind[1]}` stands behind no command: {child.content}")
        first, *others = child.content.split() or [""]
        if others and not first.startswith("-") and first.islower() and shutil.which(first):
            readme.problem(line, f"begins with the name of a program: add it to PROGRAMS or say it in words: {first}")
        readme.prose += [(flag, line) for flag in FLAG.findall(child.content)]
        readme.codes.append((child.content, line))


class Parsed(BaseException):
    """Thrown out of a script when its command line has been parsed."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        """parser: the script's own."""
        self.parser = parser


def parser_of(script: str, words: Sequence[str] | None) -> argparse.ArgumentParser:
    """Run a script up to where its own parser has taken these words; return that parser.

    script: a path within the project or a module. words None: any, to learn its flags. Raises ValueError with what
    the parser says of words that it refuses.
    """
    original, known = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args
    stream = io.StringIO()

    def stop(self: argparse.ArgumentParser, *given: Any, **options: Any) -> Any:
        if words is not None:
            original(self, *given, **options)
        raise Parsed(self)

    file = ROOT / script if script.endswith(".py") else ROOT.joinpath(*script.split("."))
    file = file / "__main__.py" if file.is_dir() else file.with_suffix(".py")
    folder = file.parent if script.endswith(".py") else ROOT  # which Python puts first
    with (
        patch.object(sys, "argv", [script, *(words or ())]),
        patch.object(sys, "path", [str(folder), *sys.path]),
        patch.object(argparse.ArgumentParser, "parse_args", stop),
        patch.object(argparse.ArgumentParser, "parse_known_args", stop if words is None else known),
        contextlib.redirect_stderr(stream),
    ):
        try:
            runpy.run_path(str(file), run_name="__main__")
        except Parsed as parsed:
            return parsed.parser
        except SystemExit as end:
            raise ValueError(f"{script} ends with {end.code}: {stream.getvalue().strip()}") from None
    raise ValueError(f"{script} parses no command line")


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of each table, without the line under its header."""
    found: list[list[list[str]]] = [[]]
    for line in FENCE.sub("", text).splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[row for row in table if set("".join(row)) - {" ", ":"} != {"-"}] for table in found if table]


def scripts() -> list[str]:
    """Return every script of the project that people start."""
    folders = ("", "dataset_maker", "demo", "benchmarks")
    paths = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    started = [path for path in paths if 'if __name__ == "__main__"' in path.read_text()]
    # worker.py answers a maker, and no person.
    return [str(path.relative_to(ROOT)) for path in started if path.name != "worker.py"]


@functools.cache
def known_flags() -> set[str]:
    """Return the flags of all scripts and of torchrun."""
    parsers = [get_args_parser(), *(parser_of(script, None) for script in scripts())]
    return {flag for parser in parsers for flag in flags_of(parser)}


def flags_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the flags of a parser and of its subcommands."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for other in action.choices.values():
                yield from flags_of(other)


def calls(text: str) -> Iterator[tuple[list[str], str, list[str]]]:
    """Yield every start of a script of the project in a command: torchrun's own words, the script, its words."""
    words = words_of(text)
    for place, word in enumerate(words):
        if word not in ("python", "python3", "torchrun"):
            continue
        rest = words[place + 1 :]
        rest = rest[: next((i for i, other in enumerate(rest) if other in OPERATORS), len(rest))]
        if word == "torchrun":
            args = get_args_parser().parse_args(rest)
            own = rest[: len(rest) - len(args.training_script_args) - 1]
            yield own, args.training_script, args.training_script_args
        elif rest[0] == "-m":
            yield [], rest[1], rest[2:]
        else:
            yield [], rest[0], rest[1:]


def check_marked(text: str) -> None:
    """Let the real parsers of a marked command take its words. Raises ValueError if one refuses, or none is there."""
    stream = io.StringIO()
    try:
        with contextlib.redirect_stderr(stream):
            found = list(calls(text))
    except SystemExit:
        raise ValueError(f"torchrun: {stream.getvalue().strip()}") from None
    if not found:
        raise ValueError(f"starts no script of the project: {text}")
    for _, script, words in found:
        parser_of(script, words)
