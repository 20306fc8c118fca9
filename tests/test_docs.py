"""The documents in docs/: their commands, flags, files, snippets and numbers are those of the project.

`readme_text.py` says what counts as a command. Here commands are parsed, not run, by the scripts' own parsers; snippets
are run. Numbers in tables are held against the files that they come from, or computed again.
"""

import json
import math
import re
from collections import Counter
from pathlib import Path

import h5py
import mne
import numpy as np
import pytest
import torch
from timm.models import create_model

import engine_for_vqnsp
import modeling_pretrain  # noqa: F401 (registers its models)
import readme_text
from dataset_maker import make_h5dataset_for_pretrain, tuh, tuh_events
from dataset_maker.make_TUAB import WINDOW as TUAB_WINDOW
from electrodes import ELECTRODES, PUBLISHED_ELECTRODES, canonical_name, resolve
from engine_for_finetuning import task_loss
from maker_helpers import noise, raw_of, run_maker
from pretraining_files import default_window
from readme_data import recording
from readme_text import FENCE, ROOT, known_flags, parse, tables

DOCS = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in DOCS}
PARSED = {name: parse(text) for name, text in TEXTS.items()}
FAQ, CHINESE, RECIPE = (TEXTS[name] for name in ("faq.md", "faq.zh.md", "tuab_tuev.md"))
BENCHMARKS = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = ("tests/", "benchmarks/", "dataset_maker/", "demo/", "docs/")
SOURCES = (".py", ".md", ".cff", ".toml")
NOT_OURS = ("rsync", "git", "mkdir")  # programs of commands that start nothing of the project
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")
COMMANDS = [(name, item) for name, doc in PARSED.items() for item in doc.items if item.kind == "command"]
SNIPPETS = [item.text for item in PARSED["faq.md"].items if item.kind == "snippet"]
FILES = {item.name: json.loads(item.text) for item in PARSED["faq.md"].items if item.kind == "file"}
SPHERE = "biosemi64"  # MNE's spherical positions of 10-10 names


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the table whose header begins with this cell, header left out."""
    (found,) = [rows[1:] for rows in tables(text) if rows[0][0] == first]
    assert found, f"the table {first} has no rows"
    return found


# What the documents say to type, and name


@pytest.mark.parametrize("name", PARSED)
def test_every_block_is_of_a_known_kind_and_every_mark_is_true(name: str) -> None:
    assert not PARSED[name].problems, "\n".join(PARSED[name].problems).replace("README.md", f"docs/{name}")


@pytest.mark.parametrize(("name", "item"), COMMANDS, ids=[f"{name} {item}" for name, item in COMMANDS])
def test_every_command_is_taken_by_bash_and_by_its_scripts_own_parser(name: str, item: readme_text.Item) -> None:
    assert not readme_text.syntax_error(item.text)
    if "bootstrap.py" in item.text:  # does not stop at its parser; those of the README are run by its test
        assert item.text in [known.text for known in parse(README).items]
    elif not item.text.startswith(NOT_OURS):
        readme_text.check_marked(item.text)


def test_commands_with_a_wrong_flag_would_be_found() -> None:
    text = next(item.text for _, item in COMMANDS if "--rename" in item.text)
    with pytest.raises(ValueError, match="--renam_"):
        readme_text.check_marked(text.replace("--rename", "--renam_"))


@pytest.mark.parametrize("name", PARSED)
def test_every_flag_that_is_named_is_one_of_a_script(name: str) -> None:
    unknown = [f"docs/{name}, line {line}: {flag}" for flag, line in PARSED[name].prose if flag not in known_flags()]
    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize("name", PARSED)
def test_every_link_and_every_file_that_is_named_is_there(name: str) -> None:
    links = [link.partition("#")[0] for link, _ in PARSED[name].links if "://" not in link]
    codes = [code for code, _ in PARSED[name].codes if re.fullmatch(r"[\w./-]+", code)]
    named = [code for code in codes if code.startswith(FOLDERS) or code.endswith(SOURCES)]
    assert links and named
    assert not [link for link in links if not (ROOT / "docs" / link).is_file()]
    assert not [code for code in named if not (ROOT / code).exists()]


def test_the_readme_points_to_every_document() -> None:
    linked = {link for link, _ in parse(README).links}
    assert {f"docs/{name}" for name in TEXTS} <= linked


# Chinese and English


def sections(text: str) -> list[str]:
    return re.split(r"^## ", text, flags=re.MULTILINE)


def test_the_chinese_faq_has_the_same_sections_with_the_same_blocks() -> None:
    assert len(sections(FAQ)) == len(sections(CHINESE)) > 15
    for english, chinese in zip(sections(FAQ), sections(CHINESE), strict=True):
        assert FENCE.findall(english) == FENCE.findall(chinese), english.splitlines()[0]


def test_the_chinese_faq_has_the_same_numbers_and_names_in_each_section() -> None:
    for english, chinese in zip(sections(FAQ), sections(CHINESE), strict=True):
        for pattern in (NUMBER, re.compile(r"`[^`\n]+`")):
            one, other = (Counter(pattern.findall(FENCE.sub("", text))) for text in (english, chinese))
            assert one == other, f"{english.splitlines()[0]}: {one - other} and {other - one}"


# Numbers in tables


@pytest.mark.parametrize("data", ["TUAB", "TUEV"])
def test_published_results_are_those_of_the_file(data: str) -> None:
    known = json.loads((ROOT / "published_results.json").read_text(encoding="utf-8"))[data]["rows"]
    rows = table(RECIPE, data)
    assert {name for name, *_ in rows} >= {"LaBraM-Base", "LaBraM-Large", "LaBraM-Huge"}
    for name, *cells in rows:
        assert cells == [f"{mean:.4f} ± {deviation:.4f}" for mean, deviation in known[name]], name


def test_counts_and_sizes_are_those_of_the_published_splits() -> None:
    known = json.loads((ROOT / "dataset_maker/published_splits.json").read_text(encoding="utf-8"))["sizes"]
    seconds = {"TUAB": TUAB_WINDOW, "TUEV": tuh_events.WINDOW}
    rows = table(RECIPE, "data")
    assert {name for name, *_ in rows} == {name for name in known if name.startswith("TU")}
    for name, *counts, shape, size in rows:
        electrodes, length = len(tuh.ELECTRODES), seconds[name.split()[0]]
        assert list(map(int, counts)) == known[name] and shape == f"{electrodes} x {length}"
        assert size == f"{sum(known[name]) * electrodes * length * 200 * 4 / 1e9:.1f}"
    hours = sum(known["TUAB v3.0.1"]) * 10 / 3600
    assert f"TUAB is {hours:.0f} hours of windows" in " ".join(RECIPE.split())
    rate = re.search(r"converts (\d+) hours of EEG a minute", README)
    assert rate and f"about {hours / int(rate[1]):.0f} minutes" in " ".join(RECIPE.split())


@pytest.mark.parametrize("text", [RECIPE, BENCHMARKS], ids=["recipe", "benchmarks"])
def test_costs_of_fine_tuning_are_those_of_the_results_file(text: str) -> None:
    known = json.loads((ROOT / "benchmarks/results/cost-assumed.json").read_text(encoding="utf-8"))["fine_tuning"]
    rows = table(text, "fine-tuning, one seed")
    assert [name for name, *_ in rows] == list(known)
    for name, *cells in rows:
        row = known[name]
        flops = f"{row['gflop_trained']:.1f}, {row['gflop_evaluated']:.1f}"
        minutes = [f"{row['minutes'][devices]:.1f}" for devices in ("1", "8")]
        sizes = [f"{row['file_gb']:.1f}", f"{row['gb_of_64_windows']:.1f}"]
        assert cells == [flops, *sizes, *minutes, f"{row['reading_minutes']:.0f}"]


def test_hours_on_two_cores_follow_from_the_assumed_rate() -> None:
    known = json.loads((ROOT / "benchmarks/results/cost-assumed.json").read_text(encoding="utf-8"))
    hours = known["fine_tuning"]["TUAB v3.0.1"]["minutes"]["1"] * known["rates"]["Base"] / 1.0e11 / 60
    assert "cores that were measured (1.0e11 FLOP/s)" in BENCHMARKS
    assert f"one seed of TUAB would take {hours:.0f} hours" in " ".join(RECIPE.split())


def test_codebook_sizes_are_those_of_the_benchmarks_tables() -> None:
    rows = table(FAQ, "codes")
    assert len(rows) == 5
    for codes, steps, revival, used, loss, title in rows:
        assert title == f"{codes} codes, {steps} steps"
        lines = table(BENCHMARKS.partition(f"**{title}")[2].partition("\n**")[0], "variant")
        variant = {"yes": "revival", "no": "published"}[revival]
        ((_, _, found, *_, codes_used, _perplexity, _ten),) = [row[:9] for row in lines if row[0] == variant]
        assert (loss, used) == (found, codes_used)
    windows = re.search(r"\((\d\.\d\d) h, (\d+) windows of (\d) s\)", BENCHMARKS)
    assert windows
    patches = int(windows[2]) * int(windows[3]) * 19
    assert f"{windows[1]} h of 19 electrodes ({patches} patches)" in FAQ


def test_patches_for_each_code_are_what_the_warning_asks_for() -> None:
    each = engine_for_vqnsp.PATCHES_PER_CODE
    wanted = f"so 512 codes want {512 * each} and 8192 want {8192 * each},"
    assert f"at least {each} patches an epoch for each code, {wanted}" in " ".join(FAQ.split())


def test_windows_are_those_of_the_loaders() -> None:
    for row in table(FAQ, "electrodes"):
        electrodes, seconds, patches = map(int, row)
        assert default_window(electrodes) == 200 * seconds and patches == electrodes * seconds


def test_losses_to_compare_with_follow_from_the_formulas() -> None:
    text = "\n".join(" | ".join(row) for row in table(FAQ, "stage"))
    for value in (2 * math.log(8192), 2 * math.log(512), math.log(2), math.log(6)):
        assert f" {value:.2f} for" in text or f"for {value:.2f}" in text
    # Logits at which a smoothed label's cross-entropy is least: the logarithms of its shares.
    shares = torch.full((1, 6), 0.1 / 6, dtype=torch.float64)
    shares[0, 0] += 0.9
    least = float(task_loss("multiclass", shares.log(), torch.tensor([0]), smoothing=0.1))
    assert f"below {least:.2f}" in text
    for number in ("1.365", "1.161"):
        assert number in README and number in text


# Snippets and rename maps


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snippet(word: str) -> str:
    (found,) = [text for text in SNIPPETS if word in text]
    return found


def test_every_snippet_is_run_here() -> None:
    assert len(SNIPPETS) == 4


def test_the_snippet_on_shapes_gives_the_shapes_that_it_says(folder: Path) -> None:
    model = create_model("labram_tiny_patch200_1600_8k_vocab", vocab_size=16)
    (folder / "checkpoints").mkdir()
    torch.save({"model": model.state_dict()}, folder / "checkpoints/labram-base.pth")
    names: dict = {}
    exec(snippet("embedding_rows"), names)
    assert names["rows"] == [0, 40, 42, 44] and "# [0, 40, 42, 44]" in snippet("embedding_rows")
    assert names["features"].shape == (2, 200)


def test_the_map_of_the_snippet_is_the_one_shown_and_the_maker_takes_it(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    exec(snippet("CAP ="), {})
    assert "degrees" in capsys.readouterr().out
    assert json.loads(Path("rename.json").read_text()) == FILES["biosemi128.json"]
    names = mne.channels.make_standard_montage("biosemi128").ch_names
    raw = raw_of([*names, "Status"], 256, noise(129, 5, 256), ["eeg"] * 128 + ["stim"])
    (folder / "biosemi").mkdir()
    raw.save(folder / "biosemi/x_raw.fif", verbose="error")
    words = ("--input", "biosemi", "--output", "data", "--rename", "rename.json", "--jobs", 1)
    assert run_maker(make_h5dataset_for_pretrain, *words) != 0  # without --drop
    assert "unknown electrode names" in capsys.readouterr().err
    assert run_maker(make_h5dataset_for_pretrain, *words, "--drop", *Path("drop.txt").read_text().split()) == 0
    with h5py.File(next(folder.glob("data/*.hdf5"))) as file:
        order = [str(name) for name in next(iter(file.values()))["eeg"].attrs["chOrder"]]
    renamed = FILES["biosemi128.json"]
    assert order == [renamed[name] for name in names if name in renamed]


def test_the_drop_list_for_the_hydrocel_net_keeps_every_electrode_of_its_map(folder: Path) -> None:
    renamed = FILES["gsn128.json"]
    Path("gsn128.json").write_text(json.dumps(renamed))
    exec(snippet("gsn128.json"), {})
    drop = Path("drop.txt").read_text().split()
    for reference in ("E129", "VREF", "Cz"):
        names = [*(f"E{number}" for number in range(1, 129)), reference]
        assert resolve(names, rename=renamed, drop=drop).kept == {
            name: renamed[name] for name in names[:-1] if name in renamed
        }


def directions(montage: str) -> dict[str, np.ndarray]:
    """Return unit vectors from the centre of MNE's sphere, which a least-squares fit by Newton's steps finds."""
    places = mne.channels.make_standard_montage(montage).get_positions()["ch_pos"]
    points = np.array(list(places.values()))
    centre = points.mean(0)
    for _ in range(200):
        far = points - centre
        length = np.linalg.norm(far, axis=1, keepdims=True)
        centre = (points - length.mean() * far / length).mean(0)
    far = points - centre
    return dict(zip(places, far / np.linalg.norm(far, axis=1, keepdims=True), strict=True))


@pytest.mark.parametrize(
    ("name", "cap", "limit"), [("biosemi128", "biosemi128", 6), ("gsn128", "GSN-HydroCel-128", 15.5)]
)
def test_a_map_names_true_electrodes_that_lie_where_they_should(name: str, cap: str, limit: float) -> None:
    found, known = directions(cap), directions(SPHERE)
    upper = {electrode.upper(): place for electrode, place in known.items()}
    renamed = FILES[f"{name}.json"]
    assert len(set(renamed.values())) == len(renamed) and set(renamed.values()) <= set(ELECTRODES)
    angles = {new: np.degrees(np.arccos(min(1, found[old] @ upper[new]))) for old, new in renamed.items()}
    assert max(angles.values()) < limit, angles
    assert len(resolve(list(found), rename=renamed, drop=set(found) - renamed.keys()).kept) == len(renamed)


def test_labels_of_large_caps_look_like_other_electrodes() -> None:
    for cap, more in (("biosemi128", 0), ("biosemi160", 0), ("biosemi256", 10)):
        names = mne.channels.make_standard_montage(cap).ch_names
        confused = [name for name in names if canonical_name(name)]
        wanted = ["A1", "A2", *(f"C{i}" for i in range(1, 7)), *(f"F{i}" for i in range(1, more + 1))]
        assert sorted(confused) == sorted(wanted)
    for cap in ("biosemi16", "biosemi32", "biosemi64", "easycap-M1"):
        assert all(map(canonical_name, mne.channels.make_standard_montage(cap).ch_names))


def test_the_snippet_on_bipolar_recordings_gives_differences_under_known_names(folder: Path) -> None:
    names = [f"EEG {name}" for name in ("Fp1", "Fp2", "F7", "F8", "T3", "T4", "T5", "T6", "O1", "O2", "Cz")]
    recording(folder / "eegmat/Subject00_1.edf", 3, names=names)
    exec(snippet("set_bipolar_reference"), {})
    bipolar = mne.io.read_raw("bipolar_raw.fif", verbose="error")
    assert tuple(bipolar.ch_names) == tuple(name.replace("FP", "Fp") for name in ELECTRODES[120:PUBLISHED_ELECTRODES])
    single = mne.io.read_raw("eegmat/Subject00_1.edf", verbose="error")
    difference = single.get_data("EEG T3") - single.get_data("EEG T5")
    np.testing.assert_allclose(bipolar.get_data("T7-P7"), difference, atol=1e-9)


def test_old_and_doubled_names_of_derivations_are_resolved_as_said() -> None:
    renamed = FILES["old_names.json"]
    assert set(resolve(list(renamed), rename=renamed).kept.values()) <= set(ELECTRODES[120:PUBLISHED_ELECTRODES])
    (drop,) = re.findall(r"`--drop (T8-P8-1 [^`]+)`", FAQ)
    chains = [name for name in ELECTRODES[120:] if name != "T8-P8"]
    assert len(resolve([*chains, "T8-P8-0", *drop.split()], drop=drop.split()).kept) == 16
