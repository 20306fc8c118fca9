"""Numbers of the documents: each table is printed again from its file in `benchmarks/results/`, and sentences likewise.

RESULTS says which command writes which file; a file that is not there, or a table that does not say what its file
holds, fails, and the failure shows the table to paste. A table with numbers is one of these, or one of OTHERS, which
says what it is held against or why it is not. Not here: `reference/README.md`, which `test_reference.py` checks.
"""

import functools
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import pytest

import readme_text
from readme_text import FENCE, ROOT, tables

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
FOLDER = BENCHMARKS / "results"
PATHS = [ROOT / "README.md", BENCHMARKS / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PATHS}
TESTS = "".join((ROOT / "tests" / name).read_text(encoding="utf-8") for name in ("test_docs.py", "test_numbers.py"))
PROJECT, HERE = "README.md", "benchmarks/README.md"

# A results file -> the document with its tables or sentences, and the words of the command without `--json FILE`.
CODEBOOK = "codebook.py --data data/train --val_data data/val "
LARGE = "speed.py --repeats 3 --cases c --models large --batch 2 --geometries 32x8 --no_memory"
RESULTS = {
    "speed-cpu.json": (PROJECT, "speed.py --repeats 3"),
    "speed-large-cpu.json": (HERE, LARGE),
    "step-profile-cpu.json": (HERE, "step_profile.py --case a"),
    "embedding-cpu.json": (HERE, "embedding.py"),
    "cost-assumed.json": (
        HERE,
        "cost.py --speed benchmarks/results/speed-cpu.json --data benchmarks/results/data-cpu.json --assume 4e14",
    ),
    "codebook-512x200.json": (HERE, CODEBOOK + "--steps 200 --folder codebook_runs/512x200 --seeds 0"),
    "codebook-512x500.json": (
        HERE,
        CODEBOOK + "--steps 500 --folder codebook_runs/512x500 --seeds 0 1 "
        "--variants revival weak_entropy+revival width_32+revival",
    ),
    "codebook-2048x200.json": (
        HERE,
        CODEBOOK + "--codes 2048 --steps 200 --folder codebook_runs/2048x200 --seeds 0 "
        "--variants published revival expire_share weak_entropy+revival width_32+revival",
    ),
    "data-cpu.json": (HERE, "data.py --repeats 3"),
    "convert-cpu.json": (PROJECT, "convert.py --input eegmat"),
    "long-recording-cpu.json": (PROJECT, "long_recording.py"),
}
WITHOUT_TABLE = ("speed-large-cpu.json", "convert-cpu.json", "long-recording-cpu.json")  # sentences alone
COVERAGE = "coverage.md"  # of `make coverage`, with one more flag
TABLED = [name for name in RESULTS if name not in WITHOUT_TABLE]

# Tables that no results file gives, by document and first cell -> the test that checks them, or why there is none.
BY_HAND = "measured once, by hand, as the document says"
SETTINGS = "settings and shapes, nothing measured"
OTHERS = {
    (PROJECT, "data set"): "test_windows_of_labelled_sets_are_those_of_the_published_splits",
    (PROJECT, "stage"): "test_total_batches_and_rates_are_the_defaults_of_the_scripts",
    (PROJECT, "flags"): SETTINGS,
    (PROJECT, "verb"): SETTINGS,
    (PROJECT, "level"): SETTINGS,
    (PROJECT, "released code"): SETTINGS,
    (HERE, ""): "test_targets_are_held_against_what_was_measured",
    (HERE, "tried"): BY_HAND,
    (HERE, "change"): BY_HAND,
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


def command(name: str) -> str:
    return f"python benchmarks/{RESULTS[name][1]} --json benchmarks/results/{name}"


def place(name: str) -> Path:
    """Return a results file's path; fail with the command that makes it where it is not there."""
    if not (FOLDER / name).is_file():
        pytest.fail(f"not measured yet: benchmarks/results/{name}; run: {command(name)}", pytrace=False)
    return FOLDER / name


def read(name: str) -> Any:
    return json.loads(place(name).read_text(encoding="utf-8"))


@functools.cache
def shown(name: str) -> str:
    """Return what the script that wrote a results file prints of it."""
    script = RESULTS[name][1].partition(".py")[0]
    with patch.object(sys, "argv", [script, "--show", str(place(name))]), patch("builtins.print") as printed:
        module = importlib.import_module(script)
        module.main(module.get_args())
    return "\n".join(str(text) for call in printed.call_args_list for text in call.args)


def numbered(document: str) -> Iterator[list[list[str]]]:
    """Yield the tables with a digit below the header, code left out."""
    for table in tables(DOCUMENTS[document]):
        if re.search(r"\d", re.sub(r"`[^`]*`", "", "|".join(cell for row in table[1:] for cell in row))):
            yield table


def flat(document: str) -> str:
    return " ".join(DOCUMENTS[document].split())


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
    assert {path.name for path in FOLDER.iterdir()} <= RESULTS.keys() | {COVERAGE}


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
            assert how in (BY_HAND, SETTINGS) or f"\ndef {how}(" in TESTS, how


def test_a_table_measured_by_hand_says_so() -> None:
    for (document, first), how in OTHERS.items():
        if how == BY_HAND:
            before = FENCE.sub("", DOCUMENTS[document]).partition(f"\n| {first} | ")[0]
            paragraph = " ".join(before.strip().split("\n\n")[-1].split())
            assert "by hand" in paragraph and "`results/`" in paragraph, first


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


# Sentences: document -> the results files that they need, and what they say then


def converting(found: Any) -> str:
    rate, ratio_ = found["hours_a_minute"]["maker"], found["ratio_of_medians"]
    return f"converts {rate:.0f} hours of EEG a minute (19 electrodes, 500 Hz), {ratio_:.2f} of the time of a plain"


def long_recording(found: Any) -> str:
    given = found["settings"]
    assert given["hours"] == 24
    where = f"a day of {given['electrodes']} electrodes at {given['rate']} Hz"
    return f"{where} takes {found['seconds']:.0f} s and {found['peak_bytes'] / 1e9:.2f} GB at most"


def embedding(found: Any) -> str:
    share = {row["rate"]: row["share"]["median"] for row in found["rows"]}
    return f"keeps {share[250]:.2f} at 250 Hz and {share[500]:.2f} at 500 Hz"


def revived(found: Any) -> str:
    rows = {row["variant"]: row for row in found["rows"]}
    before, after = rows["published"], rows["revival"]
    losses = f"lowers the held-out loss from {before['loss']:.3f} (one code) to {after['loss']:.3f}"
    return f"{losses} with {after['used_code']:.0f} of 512 codes in use"


def held_out(found: Any) -> str:
    (train,), (val,) = found["settings"]["train_windows"], found["settings"]["val_windows"]
    patches = f"{val * 4 * 19:,}".replace(",", " ")
    return f"{train} windows of 4 s), 28-31 held out ({val} windows, {patches} patches)"


def profile(found: Any) -> str:
    ours, plain = ({k: v["median"] for k, v in found["seconds"][name].items()} for name in ("ours", "plain"))
    products, attention, all_ = ours["matrix products"], ours["attention, fused"], sum(ours.values())
    parts = f"matrix products ({products / all_:.0%}) and attention ({attention / all_:.0%})".replace("%", " %")
    faster = sum(plain.values()) / (products + attention)
    left = f"{all_ - products - attention:.2f} s"
    return f"What is left besides {parts} is {left}: a step without all of it would be {faster:.1f} times as fast"


def hours_on_two_cores(speed: Any, cost: Any) -> str:
    (row,) = [r for r in speed["rows"] if (r["case"], r["geometry"], r["variant"]) == ("c", "32x8", "ours")]
    rate = row["samples_per_second"] * row["gflops_per_sample"] * 1e9
    hours = 2500 * 3600 / 4 * 50 * cost["counted"]["Base"]["flops"] / rate / 3600
    said = f"{rate:.1e}".replace("e+", "e")
    return f"measured ({said} FLOP/s) Base takes {float(f'{hours:.2g}'):.0f} hours for 2500 h of EEG"


def tokenising(speed: Any, cost: Any) -> str:
    (row,) = [r for r in speed["rows"] if (r["case"], r["geometry"], r["variant"]) == ("b", "32x8", "ours")]
    base, large = (1e11 * row["gflops_per_sample"] / cost["counted"][name]["flops"] for name in ("Base", "Large"))
    return f"Tokenising is {base:.0f} % of the arithmetic of a base step, {large:.0f} % of a large one"


def gradients(cost: Any) -> str:
    huge = cost["counted"]["Huge"]
    travel, backward = 8e3 * huge["parameters"] * 63 / 64 / 50e9, 2e3 / 3 * 8 * huge["flops"] / cost["rates"]["Huge"]
    memory_ = (16 * huge["parameters"] + 64 * huge["kept_bytes"]) / 1e9
    assert f"(64 take {memory_:.0f} GB," in flat(HERE)
    return f"Huge's gradients ({travel:.0f} ms) outlast its backward pass ({backward:.0f} ms)"


def large(found: Any, speed: Any, cost: Any) -> str:
    (row,) = [row for row in found["rows"] if row["variant"] == "ours"]
    (base,) = [r for r in speed["rows"] if (r["case"], r["geometry"], r["variant"]) == ("c", "32x8", "ours")]
    predicted = base["samples_per_second"] * base["gflops_per_sample"] * 1e9 / cost["counted"]["Large"]["flops"]
    shares = f"it reaches {row['share_of_best_product']:.2f} of the best product where Base reaches "
    assert shares + f"{base['share_of_best_product']:.2f}." in flat(HERE)
    assert f"{row['seconds']['median']:.2f} s a step of two windows" in flat(HERE)
    return f"from Base's rate: {predicted:.2f} windows a second; measured {row['samples_per_second']:.2f}"


def reading(found: Any) -> str:
    rows = {row["case"]: row for row in found["geometries"][0]["rows"]}
    assert f"the {rows['loader, 1 workers']['mb_per_second']:.0f} MB/s of `results/data-cpu.json`" in flat(HERE)
    best = rows["loader, 0 workers"]["of_sequential"]
    stage = f"(codes, {found['geometries'][0]['stage']['samples_per_second']:.1f} windows a second)"
    assert stage in flat(HERE)
    return f"half of sequential, reached without loading processes only ({best:.2f})"


def peaks(speed: Any) -> str:
    wanted = (("a", "32x8", "ours"), ("c", "32x8", "ours"))
    found = [row for row in speed["rows"] if (row["case"], row["geometry"], row["variant"]) in wanted]
    return "measured {:.0f} and {:.0f} MB (`results/speed-cpu.json`)".format(*(r["peak_bytes"] / 1e6 for r in found))


SENTENCES: list[tuple[Callable[..., str], str, tuple[str, ...]]] = [
    (converting, PROJECT, ("convert-cpu.json",)),
    (long_recording, PROJECT, ("long-recording-cpu.json",)),
    (embedding, PROJECT, ("embedding-cpu.json",)),
    (revived, PROJECT, ("codebook-512x200.json",)),
    (held_out, HERE, ("codebook-512x200.json",)),
    (profile, HERE, ("step-profile-cpu.json",)),
    (hours_on_two_cores, HERE, ("speed-cpu.json", "cost-assumed.json")),
    (tokenising, PROJECT, ("speed-cpu.json", "cost-assumed.json")),
    (gradients, HERE, ("cost-assumed.json",)),
    (large, HERE, ("speed-large-cpu.json", "speed-cpu.json", "cost-assumed.json")),
    (reading, HERE, ("data-cpu.json",)),
    (peaks, HERE, ("speed-cpu.json",)),
]


@pytest.mark.parametrize(("say", "document", "names"), SENTENCES, ids=[say.__name__ for say, *_ in SENTENCES])
def test_sentences_say_what_their_results_files_hold(
    say: Callable[..., str], document: str, names: tuple[str, ...]
) -> None:
    assert say(*map(read, names)) in flat(document)
