"""What the documents tell a reader to do works: commands, Python snippets, files; every flag and file has its name."""

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from document_data import reader as make_reader
from documents import FLAG, ROOT, Reader, files_named, flags_named, items

RUN = ["README", *(f"docs/{name}" for name in ("data", "training", "finetuning", "inference", "faq", "tuab_tuev"))]
ALL = [*RUN, "docs/differences", "docs/faq.zh", "benchmarks/README", "reference/README"]
pytestmark = pytest.mark.timeout(600)


def read(name: str) -> str:
    return (ROOT / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    yield make_reader(tmp_path_factory.mktemp("reader"))


@pytest.mark.parametrize("name", RUN)
def test_what_a_document_says_to_do_works(reader: Reader, name: str) -> None:
    wrong = reader.read(ROOT / f"{name}.md")
    assert not wrong, "\n\n".join(wrong)


def test_the_chinese_questions_have_the_commands_of_the_english_ones() -> None:
    english, chinese = ([(item.kind, item.text) for item in items(read(f"docs/{n}"))] for n in ("faq", "faq.zh"))
    assert chinese == english


@pytest.fixture(scope="module")
def known_flags() -> set[str]:
    """Return the flags that the project's scripts declare; `store_true` pairs have their `--no_` form."""
    sources = [path.read_text() for path in ROOT.rglob("*.py") if "tests" not in path.parts]
    declared = {flag for text in sources for flag in re.findall(r"[\"'](--[A-Za-z]\w*)[\"']", text)}
    torchrun = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--help"], capture_output=True, text=True)
    return declared | {flag.replace("--", "--no_") for flag in declared} | set(FLAG.findall(torchrun.stdout))


@pytest.mark.parametrize("name", ALL)
def test_every_flag_and_every_file_that_a_document_names_exists(name: str, known_flags: set[str]) -> None:
    text = read(name)
    assert not flags_named(text) - known_flags
    places = (ROOT, (ROOT / name).parent)
    assert not [file for file in files_named(text) if not any(list(place.glob(file)) for place in places)]
