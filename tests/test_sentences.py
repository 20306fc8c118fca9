"""Sentences of the documents with numbers of their own, held against the files of `benchmarks/results/`.

Those of JSON files say what follows from them; those of text files, a command and what it printed, what it says.
"""

import ast
import re
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

from documents import DOCUMENTS, FOLDER, HERE, PROJECT, flat, read
from readme_text import FENCE

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


def nearly(speed: Any) -> str:
    rows = [row for row in speed["rows"] if (row["case"], row["variant"]) == ("d", "ours")]
    ratios = [times for row in rows for times in row["times_faster_than"].values()]
    short = max(1.25 - times["median"] for times in ratios)
    lowest = min(rows, key=lambda row: row["share_of_best_product"])
    share, seconds = 0.4 - lowest["share_of_best_product"], lowest["seconds"]
    assert 0 < short < min(times["high"] - times["low"] for times in ratios)
    assert 0 < share < (seconds["median"] / seconds["low"] - seconds["median"] / seconds["high"]) * (0.4 - share)
    return f"(d) falls short by {short:.3f} at most and its share of the best product by {share:.3f}, less than rounds"


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


def checkpointing(found: Any) -> str:
    kept, lean = (row for row in found["rows"] if row["group"] == "fine-tuning, memory")
    size = found["size"]
    windows = f"{size['windows']} windows of {size['electrodes']} electrodes x {size['seconds']} s with base"
    peaks = f"{lean['peak_bytes'] / 1e6:.0f} instead of {kept['peak_bytes'] / 1e6:.0f} MB at most"
    return f"{windows} take {peaks}, for {lean['times_as_long']['median']:.2f} times as much time"


def compiling(found: Any) -> str:
    *_, made = (row for row in found["rows"] if row["group"] == "fine-tuning, compiled")
    share = f"{1 - made['times_as_long']['median']:.0%}".replace("%", " %")
    assert f"**`torch.compile`** takes {share} off a fine-tuning step" in flat(HERE)
    return f"a minute to take {share} off a step"


def one_dnn(found: Any) -> str:
    shares = [100 - 100 * r["times_as_long"]["median"] for r in found["rows"] if r["way"] == "oneDNN's"]
    return f"**oneDNN's matrix products** take {min(shares):.0f} to {max(shares):.0f} % less time"


def products(found: Any, speed: Any) -> str:
    (row,) = [r for r in found["rows"] if r["group"].endswith(", forward") and "times_as_long" not in r]
    size = found["size"]
    tokens = size["windows"] * (size["electrodes"] * size["seconds"] + 1)
    rate = 2 * tokens * (3 + 1 + 4 + 4) * 200**2 / row["seconds"]["median"] / 1e9
    best = speed["machine"]["best_product_flops"] / 1e9
    return f"a block's run at {rate:.0f} GFLOP/s (`choices-cpu.json`, below) of the {best:.0f} of the best product"


def without_the_rest(found: Any) -> str:
    ours, plain = ({k: v["median"] for k, v in found["seconds"][name].items()} for name in ("ours", "plain"))
    return f"would be {sum(plain.values()) / ours['matrix products']:.1f} times as fast as plain's"


def gains(found: Any, longer: Any) -> str:
    def of(results: Any) -> list[str]:
        loss = {(cell["variant"], cell["seed"]): cell["loss"] for cell in results["cells"]}
        return [f"{loss['revival', seed] - loss['weak_entropy+revival', seed]:.3f}" for seed in (0, 1)]

    return "seeds ({} and {}, against {} and {})".format(*of(longer), *of(found))


def seconds_of_a_run(found: Any) -> str:
    return f"{200 * median(cell['step_seconds'] for cell in found['cells']):.0f} s of it a run of 200 steps"


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
    (nearly, HERE, ("speed-cpu.json",)),
    (gradients, HERE, ("cost-assumed.json",)),
    (large, HERE, ("speed-large-cpu.json", "speed-cpu.json", "cost-assumed.json")),
    (reading, HERE, ("data-cpu.json",)),
    (peaks, HERE, ("speed-cpu.json",)),
    (checkpointing, PROJECT, ("choices-cpu.json",)),
    (compiling, PROJECT, ("choices-cpu.json",)),
    (one_dnn, HERE, ("choices-cpu.json",)),
    (products, HERE, ("choices-cpu.json", "speed-cpu.json")),
    (without_the_rest, HERE, ("step-profile-c-cpu.json",)),
    (gains, HERE, ("codebook-512x200.json", "codebook-512x500.json")),
    (seconds_of_a_run, HERE, ("codebook-512x200.json",)),
]


@pytest.mark.parametrize(("say", "document", "names"), SENTENCES, ids=[say.__name__ for say, *_ in SENTENCES])
def test_sentences_say_what_their_results_files_hold(
    say: Callable[..., str], document: str, names: tuple[str, ...]
) -> None:
    assert say(*map(read, names)) in flat(document)


# What commands printed


def printed(name: str) -> tuple[str, list[str]]:
    """Return a command and the lines that it printed."""
    command_, *lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    assert command_.startswith("$ ")
    return command_.removeprefix("$ "), lines


def test_the_demo_ends_as_its_file_says() -> None:
    _, lines = printed("demo-cpu.txt")
    start = next(i for i, line in enumerate(lines) if line.startswith("stage "))
    (block,) = [block for block in FENCE.findall(DOCUMENTS[PROJECT]) if block.startswith("```text\nstage  ")]
    assert block == "\n".join(["```text", *lines[start:], "```"])
    seconds = [int(line.split()[-1]) for line in lines[start + 1 : start + 5]]
    assert f"training takes {sum(seconds) / 60:.0f} minutes, and it ends with" in flat(PROJECT)
    trials = int(re.findall(r"SelfRegulationSCP1 \((\d+) trials", "\n".join(lines))[0])
    accuracy = float(re.findall(r"LaBraM, pre-trained +([\d.]+)", "\n".join(lines))[0])
    assert f"one standard error is about {(accuracy * (1 - accuracy) / trials) ** 0.5:.3f}" in flat(PROJECT)


def test_the_suite_took_what_its_file_says() -> None:
    asked, lines = printed("suite-cpu.txt")
    assert f"`{asked}`" in flat(PROJECT)
    passed, skipped, seconds = map(float, re.findall(r"(\d+) passed, (\d+) skipped.* in ([\d.]+)s", lines[-1])[0])
    said = f"the {passed + skipped:.0f} tests took {seconds / 60:.0f} minutes on 2 cores"
    assert said in flat(PROJECT)


def test_the_damaged_files_ended_as_their_file_says() -> None:
    asked, lines = printed("fuzz-cpu.txt")
    assert f"`{asked.removesuffix(' -s | grep mutants')}` reads" in flat(PROJECT)
    ends = [ast.literal_eval(found[0]) for line in lines if (found := re.findall(r"mutants, (\{.*\})", line))]
    message, values = (sum(end.get(how, 0) for end in ends) for how in ("message", "values"))
    said = f"reads {message + values} damaged recordings, data files and manifests instead of 80: {message} end in one"
    assert f"{said} line, {values} in the values that" in flat(PROJECT)


def test_the_overfitted_batch_went_as_its_file_says() -> None:
    asked, lines = printed("overfit-cpu.txt")
    assert asked.removesuffix(" 2>&1 | grep '^epoch'") in flat("docs/faq.md")
    losses = [re.findall(r"^epoch \d+: .*train_loss ([\d.]+)", line) for line in lines]
    first, *_, last = (float(found[0]) for found in losses if found)
    steps = sum(map(bool, losses)) * int(re.findall(r"step 1/(\d+):", lines[0])[0])
    said = f"went from {first:.2f} (the mean of the first epoch) to {last:.2f} in {steps} steps"
    assert said in flat("docs/faq.md")
