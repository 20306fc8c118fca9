"""Tables of the documents: each is printed again from its file in `benchmarks/results/`.

A table that does not say what its file holds fails, and the failure shows the table to paste. A table with numbers is
one of `documents.RESULTS`, or one of OTHERS, which says what it is held against or why it is not. Not here: sentences
(`test_sentences.py`), `reference/README.md`, which `test_reference.py` checks.
"""

import json
import re
from collections.abc import Callable, Iterator
from statistics import mean, stdev
from typing import Any

import pytest

import readme_text
from documents import COVERAGE, DOCUMENTS, FOLDER, HERE, PRINTED, PROJECT, RESULTS, TABLED, command, flat, read, shown
from readme_text import ROOT, tables

TESTS = "".join((ROOT / "tests" / name).read_text(encoding="utf-8") for name in ("test_docs.py", "test_numbers.py"))

# Tables that no results file gives, by document and first cell -> the test that checks them, or why there is none.
SETTINGS = "settings and shapes, nothing measured"
OTHERS = {
    (PROJECT, "data set"): "test_windows_of_labelled_sets_are_those_of_the_published_splits",
    (PROJECT, "stage"): "test_total_batches_and_rates_are_the_defaults_of_the_scripts",
    (PROJECT, "flags"): SETTINGS,
    (PROJECT, "verb"): SETTINGS,
    (PROJECT, "level"): SETTINGS,
    (PROJECT, "released code"): SETTINGS,
    (HERE, ""): "test_targets_are_held_against_what_was_measured",
    ("docs/faq.md", "electrodes"): "test_windows_are_those_of_the_loaders",
    ("docs/faq.md", "codes"): "test_codebook_sizes_are_those_of_the_benchmarks_tables",
    ("docs/faq.md", "stage"): "test_losses_to_compare_with_follow_from_the_formulas",
    ("docs/tuab_tuev.md", "data"): "test_counts_and_sizes_are_those_of_the_published_splits",
    ("docs/tuab_tuev.md", "TUAB"): "test_published_results_are_those_of_the_file",
    ("docs/tuab_tuev.md", "TUEV"): "test_published_results_are_those_of_the_file",
    ("docs/tuab_tuev.md", "fine-tuning, one seed"): "test_costs_of_fine_tuning_are_those_of_the_results_file",
}
CHINESE = "test_the_chinese_faq_has_the_same_numbers_and_names_in_each_section"
OTHERS |= {("docs/faq.zh.md", first): CHINESE for first in ("电极数", "码数", "阶段")}


def numbered(document: str) -> Iterator[list[list[str]]]:
    """Yield the tables with a digit below the header, code left out."""
    for table in tables(DOCUMENTS[document]):
        if re.search(r"\d", re.sub(r"`[^`]*`", "", "|".join(cell for row in table[1:] for cell in row))):
            yield table


# Tables


@pytest.mark.parametrize("name", TABLED)
def test_tables_hold_in_every_cell_what_their_results_file_gives(name: str) -> None:
    known, given = tables(DOCUMENTS[RESULTS[name][0]]), tables(shown(name))
    assert given, f"{RESULTS[name][1].split()[0]} --show prints no table"
    for table in given:
        assert len(table) > 1 and table in known, f"{RESULTS[name][0]} has no such table; paste it:\n{shown(name)}"


@pytest.mark.parametrize("name", RESULTS)
def test_the_command_that_writes_a_results_file_stands_in_the_document(name: str) -> None:
    assert command(name) in flat(RESULTS[name][0])


def test_every_file_of_results_is_one_that_a_document_uses() -> None:
    assert {path.name for path in FOLDER.iterdir()} <= RESULTS.keys() | PRINTED | {COVERAGE}


def test_the_lines_that_tests_reach_are_those_of_the_report_and_more_than_nine_in_ten_of_every_file() -> None:
    (rows,) = tables((FOLDER / COVERAGE).read_text(encoding="utf-8"))
    share = {row[0].strip("*"): int(row[3].strip("*").removesuffix("%")) for row in rows[1:]}
    total, least = share.pop("TOTAL"), min(share, key=share.__getitem__)
    assert min(total, share[least]) > 90 and len(share) > 100
    name = least.replace("\\", "")
    assert f"{total} % of all lines, and least of `{name}`, {share[least]} % (`benchmarks/results/" in flat(PROJECT)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_table_with_numbers_is_held_against_something_or_says_why_not(document: str) -> None:
    given = [table for name in TABLED if (FOLDER / name).is_file() for table in tables(shown(name))]
    missing = [name for name in TABLED if RESULTS[name][0] == document and not (FOLDER / name).is_file()]
    left = [t[0] for t in numbered(document) if t not in given and (document, t[0][0]) not in OTHERS]
    assert not left, f"{document}: tables that are not what a file of results gives, of which {missing} are missing"
    firsts = [table[0][0] for table in numbered(document)]
    for (other, first), how in OTHERS.items():
        if other == document:
            assert first in firsts, f"OTHERS names a table that is not there: {first}"
            assert how == SETTINGS or f"\ndef {how}(" in TESTS, how


def speed_row(case: str, geometry: str, variant: str = "ours") -> dict[str, Any]:
    wanted = {"case": case, "geometry": geometry, "variant": variant}
    (row,) = [row for row in read("speed-cpu.json")["rows"] if wanted.items() <= row.items()]
    return row


def ratio(case: str, *others: str, variant: str = "ours") -> Callable[[str], list[float]]:
    return lambda geometry: [speed_row(case, geometry, variant)["times_faster_than"][o]["median"] for o in others]


def memory(case: str) -> Callable[[str], list[float]]:
    return lambda g: [speed_row(case, g)["peak_bytes"] / speed_row(case, g, "plain")["peak_bytes"]]


# What -> targets, what was measured at a size of window, whether less is better.
TARGETS: dict[str, tuple[list[float], Callable[[str], list[float]], bool]] = {
    "(a) tokenizer step vs plain": ([1.5], ratio("a", "plain"), False),
    "(b) codes vs plain": ([1.8], ratio("b", "plain"), False),
    "(c) pre-training step vs plain": ([1.4], ratio("c", "plain"), False),
    "(c) with cached codes vs plain": ([1.6], ratio("c", "plain", variant="cached"), False),
    "(d) fine-tuning step vs plain, vs braindecode": ([1.25, 1.25], ratio("d", "plain", "braindecode"), False),
    "(e) embedding vs plain, vs braindecode": ([1.25, 1.25], ratio("e", "plain", "braindecode"), False),
    "peak memory of (a) above the idle process vs plain": ([0.5], memory("a"), True),
    "quantiser alone vs plain, vs the library": ([4, 2], ratio("q", "plain", "library"), False),
    "its memory vs plain": ([0.05], memory("q"), True),
    "model FLOPs over the best matrix product, (a), (c), (d)": (
        [0.4],
        lambda geometry: [speed_row(case, geometry)["share_of_best_product"] for case in "acd"],
        False,
    ),
}


def test_targets_are_held_against_what_was_measured() -> None:
    (rows,) = [table for table in tables(DOCUMENTS[HERE]) if table[0][:2] == ["", "target"]]
    assert rows[0] == ["", "target", "32 x 8 s", "23 x 10 s", ""] and [row[0] for row in rows[1:]] == list(TARGETS)
    for name, target, *cells, verdict in rows[1:]:
        targets, measured, less = TARGETS[name]
        sizes = [g for g in ("32x8", "23x10") if g == "32x8" or name not in list(TARGETS)[7:9]]  # q has no window
        assert target == ", ".join(f"{value:g}" for value in targets)
        assert cells == [*(", ".join(f"{v:.2f}" for v in measured(g)) for g in sizes), *[""] * (2 - len(sizes))]
        pairs = [(v, t) for g in sizes for v, t in zip(measured(g), targets * 3, strict=False)]
        assert verdict == ("missed" if any(v > t if less else v < t for v, t in pairs) else ""), name


def test_windows_of_labelled_sets_are_those_of_the_published_splits() -> None:
    known = json.loads((ROOT / "dataset_maker/published_splits.json").read_text(encoding="utf-8"))["sizes"]
    (rows,) = [table for table in tables(DOCUMENTS[PROJECT]) if table[0][0] == "data set"]
    for name in ("MentalArithmetic", "SEED-V"):
        (cell,) = [row[2] for row in rows if row[0].startswith(name)]
        assert "{}, {} and {} windows".format(*known[name]) in cell
    for name in ("TUAB v3.0.1", "TUEV v2.0.1"):
        assert "{}, {}, {}".format(*known[name]) in flat(PROJECT)


def test_total_batches_and_rates_are_the_defaults_of_the_scripts() -> None:
    (rows,) = [table for table in tables(DOCUMENTS[PROJECT]) if table[0][0] == "stage"]
    scripts = ("run_vqnsp_training.py", "run_labram_pretraining.py", "run_class_finetuning.py")
    for script, (_, batch, rate) in zip(scripts, rows[1:], strict=True):
        parser = readme_text.parser_of(script, None)
        total, each = map(int, re.match(r"(\d+) = (\d+) x 8", batch).groups())  # type: ignore[union-attr]
        assert total == 8 * each and each == parser.get_default("batch_size")
        found = re.search(r"5e-\d", rate)
        assert found and float(found[0]) == parser.get_default("lr")


@pytest.mark.parametrize("name", [name for name in RESULTS if name.startswith("codebook")])
def test_rows_of_a_codebook_are_means_and_deviations_of_its_cells(name: str) -> None:
    found = read(name)
    revival = {cell["seed"]: cell["loss"] for cell in found["cells"] if cell["variant"] == "revival"}
    assert {cell["variant"] for cell in found["cells"]} == {row["variant"] for row in found["rows"]}
    for row in found["rows"]:
        cells = [cell for cell in found["cells"] if cell["variant"] == row["variant"]]
        assert row["seeds"] == len(cells) == len({cell["seed"] for cell in cells})
        values = {key: [cell[key] for cell in cells] for key in ("loss", "amplitude", "phase")}
        values["difference"] = [cell["loss"] - revival[cell["seed"]] for cell in cells]
        for key, given in values.items():
            assert row[key] == pytest.approx(mean(given), abs=1e-9)
            assert row[f"{key}_sd"] == (pytest.approx(stdev(given), abs=1e-9) if len(given) > 1 else None)
