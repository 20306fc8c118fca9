"""Every command and Python snippet of the README does what a reader expects, every flag and file that it names exists.

`readme_text.py` says what counts as a command and which are marked, `readme_session.py` how they are run and at what
size. The commands run in the README's order, so a test alone (`-k "line 75"`) runs those before it first.
"""

import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

import readme_text
from readme_session import ADDED, Ended, Session, session, with_added
from readme_text import ROOT, known_flags, parse

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
README = parse(TEXT)
pytestmark = pytest.mark.timeout(900)  # a test alone runs the whole session before it
FOLDERS = ("tests/", "benchmarks/", "dataset_maker/", "demo/", "reference/")
SOURCES = (".py", ".md", ".cff", ".toml")
# Packages that the product is only compared with are there in the tested environment.
NOT_HERE = r"No matching distribution found|Could not find a version|No module named '(braindecode|vector_quantize_)"


def contents(folder: Path) -> set[str]:
    """Return the names in a folder, those of caches left out."""
    return {path.name for path in folder.iterdir() if not path.name.startswith((".", "__"))}


BEFORE = contents(ROOT)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with session(tmp_path_factory.mktemp("readme"), README.items) as found:
        yield found


def test_every_block_is_of_a_known_kind_and_every_mark_is_true() -> None:
    assert not README.problems, "\n".join(README.problems)


@pytest.mark.parametrize("number", range(len(README.items)), ids=[str(item) for item in README.items])
def test_what_the_readme_says_to_do_works(reader: Session, number: int) -> None:
    ended = reader.upto(number)
    if re.search(NOT_HERE, ended.failure):
        pytest.skip(f"a package of benchmarks/requirements.txt is not here: {ended.failure}")
    assert not ended.failure, f"README.md, {README.items[number]}\n{ended.failure}"


def test_every_flag_that_the_readme_names_is_one_of_a_script() -> None:
    assert README.prose
    unknown = unknown_flags(README)
    assert not unknown, "\n".join(unknown)


def unknown_flags(readme: readme_text.Readme) -> list[str]:
    return [f"README.md, line {line}: no script has {flag}" for flag, line in readme.prose if flag not in known_flags()]


def missing_files(readme: readme_text.Readme) -> list[str]:
    """Return links and names of the project's files that lead nowhere."""
    named = [(code, line) for code, line in readme.codes if re.fullmatch(r"[\w./*-]+", code)]
    named = [(code, line) for code, line in named if code.startswith(FOLDERS) or code.endswith(SOURCES)]
    named += [(link.partition("#")[0], line) for link, line in readme.links if "://" not in link and link[0] != "#"]
    places = (ROOT, ROOT / "dataset_maker")
    return [
        f"README.md, line {line}: there is no {name}"
        for name, line in named
        if not any(list(place.glob(name.rstrip("/"))) for place in places)
    ]


def test_every_file_that_the_readme_names_is_there() -> None:
    assert not missing_files(README), "\n".join(missing_files(README))


def test_the_file_map_names_every_file_of_the_top_and_of_the_makers() -> None:
    section = parse(TEXT.partition("\n## File map\n")[2].partition("\n## ")[0])
    named = [code for code, _ in section.codes]
    files = [*ROOT.glob("*.py"), *(path for path in ROOT.glob("dataset_maker/*.py") if path.name != "__init__.py")]
    missing = sorted(path.name for path in files if not any(fnmatch.fnmatch(path.name, name) for name in named))
    assert not missing, f"README.md's file map lacks {missing}"


def test_the_commands_of_the_readme_are_not_overlooked() -> None:
    # Whatever the parser thinks: lines and inline code that begin like a command.
    starts = re.findall(r"^(?:\w+=\S+ )*((?:python3?|make|torchrun|pip) [^\n`]+)$", TEXT, re.MULTILINE)
    starts += re.findall(r"(?<!`)`((?:\w+=\S+ )*(?:python3?|make|torchrun|pip)\s[^`]+)`(?!`)", TEXT)
    assert len(starts) > 30
    found = {" ".join(item.text.split()) for item in README.items if item.kind == "command"}
    assert not [text for text in starts if not any(" ".join(text.split()) in command for command in found)]


def test_the_imagery_file_holds_what_the_readme_says(reader: Session) -> None:
    found = re.search(r"gives (\d+) windows of (\d+) s \((\d+) electrodes x .* of each of the three runs", TEXT)
    assert found
    windows, seconds, electrodes = map(int, found.groups())
    reader.upto(len(README.items) - 1)
    with h5py.File(reader.folder / "data/Imagery.hdf5") as file:
        shapes = {split: group["eeg"].shape for split, group in file.items()}
    assert shapes == dict.fromkeys(("train", "val", "test"), (windows, electrodes, seconds * 200))


# What the harness would find


def one(text: str) -> str:
    """Return the only problem of a README."""
    (problem,) = parse(text).problems
    return problem


@pytest.mark.parametrize("info", ["console", "bash session", "text shortened", "pyhton"])
def test_a_block_of_an_unknown_kind_is_a_problem(info: str) -> None:
    assert f"line 3: a block of the unknown kind `{info}`" in one(f"Text\n\n```{info}\nmake test\n```\n")


def test_an_indented_block_and_a_file_without_a_name_are_problems() -> None:
    assert "line 3: an indented block" in one("Text\n\n    make test\n")
    assert "a csv file without a name" in one("Rows:\n\n```csv\na,b\n```\n")
    assert parse("Rows of `a.csv` and `b.csv`:\n\n```csv\na,b\n```\n").items[0].name == "b.csv"


GPUS = "torchrun --nproc_per_node=8 run_vqnsp_training.py"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```bash\n# needs patience\nmake test\n```", "`needs patience`, which is none of"),
        ("```bash\n# needs 8 GPUs\nmake test\n```", "marked `needs 8 GPUs`, but needs nothing that is not here"),
        ("`make test` (needs TUH data)", "marked `needs TUH data`, but needs nothing that is not here"),
        ("`python dataset_maker/make_TUAB.py --root a --output b`", "needs TUH data"),
        (f"```\n{GPUS}\n```", "marked `needs None`, but needs 8 GPUs"),
        (f"```\n# needs SLURM\n{GPUS}\n```", "marked `needs SLURM`, but needs 8 GPUs"),
        ("`data/TUAB.hdf5` (needs TUH data)", "stands behind no command"),
        ("```bash\nmake test\n# needs SLURM\n```", "stands before no command"),
        ("```bash\n#!/bin/bash\n#SBATCH --nodes=1\nsrun make test\n```", "needs SLURM"),
        ("```bash\nmake 'test\n```", "bash does not take it"),
        ("```bash\nmake \\\n```", "bash does not take it"),
        ("`sed -n 1p README.md`", "begins with the name of a program"),
    ],
    ids=lambda value: value[:40],
)
def test_a_mark_that_is_not_true_and_a_broken_line_are_problems(text: str, problem: str) -> None:
    assert problem in one(text)


def test_a_mark_is_for_the_command_behind_it_alone() -> None:
    text = f"```bash\n# needs 8 GPUs\n{GPUS}\ncp a b\n\n# why\nfor i in 1; do\n  echo $i  # so\ndone\n```"
    readme = parse(text)
    assert not readme.problems
    assert [(item.line, item.mark) for item in readme.items] == [(3, "8 GPUs"), (4, None), (7, None)]
    assert readme.items[2].text == "for i in 1; do\n  echo $i  # so\ndone"


def test_commands_are_found_in_text_tables_and_lists_and_flags_are_not() -> None:
    text = "So `A=1 make\ntest` does.\n\n|a|b|\n|-|-|\n|x|`pip install x`|\n\n* `python -m x`, `--seed 1`, `make`\n"
    readme = parse(text)
    assert [(i.line, i.text) for i in readme.items] == [(1, "A=1 make test"), (6, "pip install x"), (8, "python -m x")]
    assert readme.prose == [("--seed", 8)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{GPUS} --no_such_flag 1", "unrecognized arguments: --no_such_flag"),
        (f"{GPUS} --epochs many", "invalid int value"),
        ("torchrun --nproc_per_node=8 --no-such run_vqnsp_training.py", "torchrun"),
        ("torchrun --nproc_per_node=8", "torchrun"),
        ("srun nothing of the project", "starts no script"),
        ("python dataset_maker/make_TUEV.py --root a", "required: --output"),
    ],
)
def test_the_real_parsers_refuse_what_a_marked_command_gets_wrong(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        readme_text.check_marked(text)


def test_an_unknown_flag_and_a_missing_file_are_found() -> None:
    readme = parse("Take `--seed` or `--sead`, see `tests/test_nothing.py`, [this](CITATION.cff) and [that](THAT.md).")
    assert unknown_flags(readme) == ["README.md, line 1: no script has --sead"]
    lost = missing_files(readme)
    assert [text.rpartition(" ")[2] for text in lost] == ["tests/test_nothing.py", "THAT.md"]


def attempt(reader: Session, text: str) -> Ended:
    """Do a README in the reader's folder; return how its last item ended."""
    readme = parse(f"`source .venv/bin/activate`\n\n{text}\n")
    assert not readme.problems
    other = Session(reader.folder, readme.items)
    try:
        return other.upto(len(readme.items) - 1)
    finally:
        other.close()


def test_a_command_that_fails_is_shown_with_its_exit_code_and_last_lines(reader: Session) -> None:
    failure = attempt(reader, "```\npython run_vqnsp_training.py --epoch 3 --sead 1\n```").failure
    command, code, message = failure.splitlines()
    assert command.startswith("$ python run_vqnsp_training.py --epoch 3 --sead 1 --epochs 1")
    assert code == "exit code 2; its last lines:" and message.startswith("error: ") and "--sead" in message


def test_a_snippet_that_fails_is_shown_with_its_line(reader: Session) -> None:
    assert not attempt(reader, "```python\nx = 1\n```\n\n```python\nassert x == 1\n```").failure  # one after the other
    failure = attempt(reader, "```python\nx = 1\n\nx.nothing()\n```").failure
    assert "README.md, line 4" in failure and "AttributeError: 'int' object has no attribute 'nothing'" in failure


def test_an_output_that_is_not_printed_is_shown(reader: Session) -> None:
    shown = "```\necho a 1; echo loss 2e-5\n```\n\n```text\na 2\n{}  3.25\n```"
    assert not attempt(reader, shown.format("loss")).failure
    assert attempt(reader, shown.format("lost")).failure.splitlines()[1:] == ["lost  3.25"]
    assert attempt(reader, f"{shown.format('loss')}\n\n```\ntrue\n```\n\n```text\na 3\n```").failure  # said before


def test_environment_and_folder_carry_over_to_the_next_command(reader: Session) -> None:
    text = '```\nexport COLOUR=red\ncd tests\n[ "$COLOUR" = red ] && [ -f test_errors.py ]\n```'
    assert not attempt(reader, text).failure
    assert "exit code 1" in attempt(reader, text.replace("export ", "")).failure


def test_flags_are_added_behind_a_commands_own_words_and_every_row_of_them_is_used() -> None:
    texts = [item.text for item in README.items if item.kind == "command"]
    assert all(with_added(text).startswith(text) for text in texts if not re.search("nproc_per_node|SBATCH", text))
    assert not [pattern for pattern in ADDED if not any(re.search(pattern, text, re.DOTALL) for text in texts)]


def test_the_repository_is_left_as_it_was(reader: Session) -> None:
    reader.upto(len(README.items) - 1)
    assert reader.folder.resolve() != ROOT.resolve() and not list(reader.folder.glob("tests/test_readme.py"))
    made = ("demo_run", "data", "checkpoints", "log", "pretrain.png", "imagery.csv")
    assert all((reader.folder / name).exists() for name in made) and contents(ROOT) == BEFORE
