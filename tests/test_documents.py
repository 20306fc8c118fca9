"""What the documents tell a reader to do works: commands, Python snippets, files; every flag and file has its name."""

from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from document_data import reader as make_reader
from documents import ROOT, Reader, declared_flags, files_named, flags_named, flags_of, items

RUN = ["README", *(f"docs/{name}" for name in ("data", "training", "finetuning", "inference", "faq", "tuab_tuev"))]
ALL = [*RUN, "docs/differences", "docs/faq.zh", "benchmarks/README", "reference/README"]
pytestmark = pytest.mark.timeout(1800)


def read(name: str) -> str:
    return (ROOT / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Return a reader who has read docs/data.md: other documents use what it makes."""
    someone = make_reader(tmp_path_factory.mktemp("reader"))
    someone.wrong["docs/data"] = someone.read(ROOT / "docs/data.md")
    return someone


@pytest.mark.parametrize("name", RUN)
def test_what_a_document_says_to_do_works(reader: Reader, name: str) -> None:
    wrong = reader.wrong.get(name) or reader.read(ROOT / f"{name}.md")
    assert not wrong, "\n\n".join(wrong)


def test_what_does_not_work_is_found(reader: Reader, tmp_path: Path) -> None:
    commands = "for i in 1; do python run_inference.py embed --sead 1; done\nmake dema\necho loss 1e-3"
    text = f"```bash\n{commands}\n```\n```text\nloss 2.5\nlost 3\n```\n```python\nimport mne\n\nmne.nothing()\n```\n"
    (tmp_path / "wrong.md").write_text(text)
    flag, target, output, snippet = reader.read(tmp_path / "wrong.md")
    assert "line 2: " in flag and "--sead" in flag and "line 3: make dema" in target
    assert "['lost #']" in output and "line 11: " in snippet and "AttributeError" in snippet


def test_the_chinese_questions_have_the_commands_of_the_english_ones() -> None:
    english, chinese = ([(item.kind, item.text) for item in items(read(f"docs/{n}"))] for n in ("faq", "faq.zh"))
    assert chinese == english


@pytest.fixture(scope="module")
def known_flags() -> set[str]:
    """Return the flags of all scripts and of torchrun."""
    paths = [path for path in (*ROOT.glob("*.py"), *ROOT.glob("*/*.py")) if path.parent.name != "tests"]
    scripts = [path for path in paths if '__name__ == "__main__"' in path.read_text()]
    return flags_of(get_args_parser()).union(*map(declared_flags, scripts))


@pytest.mark.parametrize("name", ALL)
def test_every_flag_and_every_file_that_a_document_names_exists(name: str, known_flags: set[str]) -> None:
    text = read(name)
    unknown = flags_named(text) - known_flags
    assert not unknown
    places = (ROOT, (ROOT / name).parent)
    assert not [file for file in files_named(text) if not any(list(place.glob(file)) for place in places)]
