"""The codebook benchmark: variants do what they claim, all are trained on the same windows, a table comes out."""

import argparse
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from data_helpers import TRIO, random, signal, write_pretraining
from errors import InputError, UsageError
from norm_ema_quantizer import NormEMAVectorQuantizer, l2_normalize

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "codebook.py"
sys.path.insert(0, str(SCRIPT.parent))

codebook = importlib.import_module("codebook")
variants = importlib.import_module("codebook_variants")

WHY = "needs vector-quantize-pytorch, which the project does not depend on; compared with 1.32.0"


def quantizer(rows: Tensor) -> NormEMAVectorQuantizer:
    """Return a quantiser in float32 with these rows."""
    made = NormEMAVectorQuantizer(*rows.shape, kmeans_init=False)
    made.embedding.weight.copy_(l2_normalize(rows))
    return made.train()


def flags(folder: Path, *more: str) -> list[str]:
    """Return the words of a tiny run."""
    data = [["--data", str(folder / "train.hdf5")], ["--val_data", str(folder / "val.hdf5")]]
    sizes = ["--steps", "3", "--codes", "12", "--batch_size", "2", "--seconds", "1", "--seeds", "0", "1"]
    output = ["--folder", str(folder / "cells"), "--json", str(folder / "table.json")]
    return [*data[0], *data[1], *sizes, *output, "--variants", "published", "expire_2", *more]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a file to train on and one held out."""
    write_pretraining(tmp_path / "train.hdf5", TRIO, [signal(3, 1600, seed=s) for s in range(2)])
    write_pretraining(tmp_path / "val.hdf5", TRIO, [signal(3, 1000, seed=9)])
    return tmp_path


# The command


def test_the_command_trains_each_variant_once_and_prints_mean_and_spread(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, str(SCRIPT), *flags(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    cells = {path.stem: json.loads(path.read_text())["cell"] for path in (folder / "cells").glob("*.json")}
    assert cells.keys() == {"published-0", "published-1", "expire_2-0", "expire_2-1"}
    report = json.loads((folder / "table.json").read_text())
    losses = [cells[f"expire_2-{seed}"]["loss"] for seed in (0, 1)]
    row = report["rows"][1]
    assert row["variant"] == "expire_2" and row["seeds"] == 2
    assert row["loss"] == pytest.approx(np.mean(losses)) and row["loss_sd"] == pytest.approx(np.std(losses, ddof=1))
    assert f"{row['loss']:.4f} +- {row['loss_sd']:.4f}" in done.stdout
    assert report["rows"][0]["relative_seconds"] == 1
    with patch.object(codebook, "train", side_effect=AssertionError("a finished cell is trained again")):
        codebook.main(codebook.get_args(flags(folder)))
        assert capsys.readouterr().out.splitlines() == done.stdout.splitlines()[4:]  # without the cells' lines
        codebook.main(codebook.get_args([*flags(folder)[:-2], "published", "--seeds", "1"]))
        assert capsys.readouterr().out.splitlines() == done.stdout.splitlines()[4:]  # of all that is finished
    assert {f"{cell['variant']}-{cell['seed']}" for cell in report["cells"]} == cells.keys()
    assert report["settings"]["steps"] == 3 and "code_version" in report["machine"]
    codebook.main(codebook.get_args(["--show", str(folder / "table.json")]))
    assert capsys.readouterr().out.splitlines() == done.stdout.splitlines()[4:]
    (folder / "table.json").write_text("{}")
    with pytest.raises(InputError, match=r"is no results file of codebook.py .* --json FILE"):
        codebook.main(codebook.get_args(["--show", str(folder / "table.json")]))
    with pytest.raises(UsageError, match="--val_data is missing"):
        codebook.main(codebook.get_args(["--data", "x.hdf5"]))


def test_variants_are_compared_seed_by_seed() -> None:
    known = dict.fromkeys(("amplitude", "phase", "used_code", "perplexity", "top10_share"), 1.0)
    cells = [
        {"variant": name, "seed": seed, "loss": loss, "step_seconds": seconds, **known}
        for name, seed, loss, seconds in (
            ("published", 0, 9.0, 2.0),
            ("revival", 0, 5.0, 3.0),
            ("revival", 1, 7.0, 3.0),
            ("expire_2", 1, 6.0, 1.0),
            ("expire_2", 0, 2.0, 5.0),
            ("expire_2", 2, 1.0, 1.0),  # nothing to compare with
        )
    ]
    row = codebook.summarize(cells)[2]
    assert (row["loss"], row["difference"], row["relative_seconds"]) == (3.0, -2.0, 2.5)
    assert row["difference_sd"] == pytest.approx(np.std([-1, -3], ddof=1)) and row["relative_seconds_sd"] is None
    best = {"loss": 1.0, "amplitude": 1.0, "phase": 1.0}
    assert "| -2.0000 +- 1.4142 |" in codebook.table([row], best) and " top ten | time |\n" in codebook.table(
        [row], best
    )
    untimed = codebook.table(codebook.summarize([cell for cell in cells if cell["variant"] != "published"]), best)
    assert " top ten |\n" in untimed and len({line.count("|") for line in untimed.splitlines()}) == 1


def test_cells_of_other_settings_are_refused(folder: Path) -> None:
    codebook.main(codebook.get_args([*flags(folder)[:-2], "published"]))
    with pytest.raises(InputError, match="another --folder"):
        codebook.main(codebook.get_args([*flags(folder), "--steps", "4"]))


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {}}'])
def test_a_damaged_cell_is_named_with_what_to_do(content: str, tmp_path: Path) -> None:
    (tmp_path / "published-0.json").write_text(content)
    with pytest.raises(InputError, match=r"published-0\.json is no finished training \(\w+\): delete it"):
        codebook.finished(tmp_path, {})


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_variant_trains(name: str, folder: Path) -> None:
    args = codebook.get_args([*flags(folder), "--steps", "4"])
    trained = codebook.train(args, variants.VARIANTS[name], 0, codebook.read_windows(args.data, "--data", 1))
    rows = trained["model"].quantize.embedding.weight
    assert rows.shape == (12, variants.VARIANTS[name].width) and np.isfinite(trained["losses"]).all()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(12))


def test_variants_begin_with_the_same_weights_and_see_the_same_windows(folder: Path) -> None:
    args = codebook.get_args(flags(folder))
    montages = codebook.read_windows(args.data, "--data", 1)
    first, again, other = (list(codebook.training_batches(montages, 2, 11, seed)) for seed in (0, 0, 1))
    assert len(first) == 11  # more than an epoch of 8
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(first, other, strict=True))
    plain, rotation = (codebook.build(args, variants.VARIANTS[name], 0) for name in ("published", "rotation"))
    state = rotation.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items() if "embed_avg" not in key)


def test_the_best_with_one_code_is_the_spread_of_spectra_around_their_mean(tmp_path: Path) -> None:
    first, second = signal(3, 200, seed=1), signal(3, 200, seed=2)
    path = write_pretraining(tmp_path / "file.hdf5", TRIO, [np.concatenate([first, second] * 3, axis=1)])
    found = codebook.one_code(codebook.read_windows([path], "--data", 1), batch_size=4)
    spectra = []
    for eeg in (first, second):
        # Not NumPy's: whether a real value has the phase pi or -pi is left to the library.
        spectrum = torch.fft.fft(torch.from_numpy(eeg) / 100).numpy()
        parts = {"amplitude": np.abs(spectrum), "phase": np.angle(spectrum)}
        spectra.append({name: (x - x.mean()) / x.std(ddof=1) for name, x in parts.items()})
    for name in ("amplitude", "phase"):  # two values lie half their difference from their mean
        expected = np.mean((spectra[0][name] - spectra[1][name]) ** 2) / 4
        assert found[name] == pytest.approx(expected, rel=1e-4)


# Gradient and loss


def test_the_rotation_trick_gives_the_row_and_turns_the_gradient_back_by_their_angle() -> None:
    angles, turns = torch.tensor([0.3, -2.0, 1.1]), torch.tensor([0.5, 1.5, -0.7])

    def at(angle: Tensor) -> Tensor:
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    vectors, rows = at(angles).requires_grad_(), at(angles + turns)
    turned = variants.rotate(vectors, rows)
    torch.testing.assert_close(turned.detach(), rows)
    upstream = torch.tensor([0.2, 1.0, 2.5])
    turned.backward(at(upstream))
    torch.testing.assert_close(vectors.grad, at(upstream - turns))


def test_the_rotation_trick_is_that_of_the_library() -> None:
    library = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch", reason=WHY)
    rows, upstream = l2_normalize(random(20, 6, seed=1)), random(20, 6, seed=2)
    gradients = []
    for rotation in (variants.rotate, library.rotate_to):
        vectors = l2_normalize(random(20, 6)).requires_grad_()
        rotation(vectors, rows).backward(upstream)
        gradients.append(vectors.grad)
    torch.testing.assert_close(*gradients)


def test_only_the_gradient_of_the_rotating_quantiser_differs() -> None:
    rows, z = random(8, 6, seed=1).float(), random(30, 6).float()
    upstream = random(30, 6, seed=3).float()
    found = []
    for kind in (NormEMAVectorQuantizer, variants.RotationTrick):
        made = kind(8, 6, kmeans_init=False).eval()
        made.embedding.weight.copy_(l2_normalize(rows))
        inputs = z.clone().requires_grad_()
        quantized, codes, loss = made(inputs)
        quantized.backward(upstream)
        found.append((quantized.detach(), codes, loss, inputs.grad))
    for plain, turned in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(turned, plain)
    assert (found[0][3] - found[1][3]).abs().max() > 1e-2


def test_the_entropy_term_is_least_where_choices_are_sure_and_even() -> None:
    rows = torch.eye(6, dtype=torch.float64)
    even = variants.entropy_term(rows.repeat(4, 1), rows, temperature=0.01)
    assert even.item() == pytest.approx(-math.log(6), abs=1e-9)
    one = variants.entropy_term(rows[:1].repeat(24, 1), rows, temperature=0.01)
    assert one.item() == pytest.approx(0, abs=1e-9)
    undecided = variants.entropy_term(l2_normalize(rows.sum(0, keepdim=True)), rows, temperature=0.01)
    assert undecided.item() == pytest.approx(0, abs=1e-9)
    hot = variants.entropy_term(rows[:, :], rows, temperature=2.0)  # a softmax over (0, -1, -1, -1, -1, -1)
    p = np.array([1.0, *[math.exp(-1)] * 5])
    p /= p.sum()
    assert hot.item() == pytest.approx(-(p * np.log(p)).sum() - math.log(6), rel=1e-9)


def test_the_entropy_term_is_added_in_training_only() -> None:
    made = variants.EntropyTerm(6, 6, kmeans_init=False)
    made.embedding.weight.copy_(torch.eye(6))
    vectors = torch.eye(6).repeat(4, 1)  # on the rows: the quantiser's own loss is zero
    made.train().deferred = True
    assert made(vectors)[2].item() == pytest.approx(-0.1 * math.log(6), abs=1e-6)
    assert made.eval()(vectors)[2].item() == pytest.approx(0, abs=1e-6)


def test_unquantised_vectors_reach_the_decoder_at_unit_length_without_a_loss() -> None:
    z = random(10, 6).float()
    quantized, _, loss = variants.Unquantized(8, 6, kmeans_init=False).eval()(z)
    torch.testing.assert_close(quantized, z / z.norm(dim=1, keepdim=True))
    assert loss.item() == 0


# Rows


def test_orthogonal_rows_are_whole_orthogonal_matrices() -> None:
    rows = variants.orthogonal_rows(20, 8, torch.Generator().manual_seed(0))
    for block in rows.split(8):
        torch.testing.assert_close(block @ block.t(), torch.eye(len(block)))
    model = codebook.build(
        argparse.Namespace(model="vqnsp_encoder_tiny_decoder_1x200x4", codes=70), variants.VARIANTS["orthogonal"], 0
    )
    start = model.quantize.embedding.weight[:64]
    torch.testing.assert_close(start @ start.t(), torch.eye(64), atol=1e-5, rtol=0)
    assert not model.quantize.needs_initialization


def test_a_row_expires_when_its_average_falls_below_the_threshold() -> None:
    made = quantizer(torch.eye(4))
    expiry = variants.Expiry(made, threshold=0.7, seed=0)
    vectors = l2_normalize(random(5, 4)).float()
    counts = torch.tensor([3.0, 0.0, 1.0, 1.0])
    expiry(0, counts, vectors)  # averages 1.4, 0.8, 1, 1
    assert torch.equal(made.embedding.weight, torch.eye(4))
    expiry(1, counts, vectors)  # 1.72, 0.64, 1, 1
    rows = made.embedding.weight
    assert torch.equal(rows[[0, 2, 3]], torch.eye(4)[[0, 2, 3]])
    assert (vectors == rows[1]).all(1).any()
    torch.testing.assert_close(expiry.size, torch.tensor([1.72, 0.7, 1.0, 1.0]))


def test_expiry_with_a_share_measures_by_what_a_row_gets_on_average() -> None:
    made = quantizer(torch.eye(4))
    expiry = variants.ShareExpiry(made, threshold=0, seed=0)
    vectors, counts = l2_normalize(random(40, 4)).float(), torch.tensor([20.0, 0.0, 10.0, 10.0])
    steps = 0
    while not expiry.replaced:
        expiry(steps, counts, vectors)
        steps += 1
    assert steps == 11 and expiry.replaced == 1  # 0.8^10 > 0.1 > 0.8^11


def test_rows_expire_as_in_the_library() -> None:
    library = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch", reason=WHY)
    made = quantizer(random(12, 6, seed=1).float())
    rows = made.embedding.weight.clone()
    theirs = library.Codebook(6, 12, use_cosine_sim=True, threshold_ema_dead_code=0.9, ema_update=False).train()
    theirs.embed.data.copy_(rows[None])
    expiry = variants.Expiry(made, threshold=0.9, seed=0)
    vectors = l2_normalize(random(8, 6, seed=2)).float()
    _, codes, _ = theirs(vectors[None])
    expiry(0, torch.bincount(codes.flatten(), minlength=12).float(), vectors)
    replaced = [(after != rows).any(1) for after in (made.embedding.weight, theirs.embed[0])]
    assert 0 < int(replaced[0].sum()) < 12
    assert torch.equal(*replaced)
    torch.testing.assert_close(expiry.size, theirs.cluster_size[0])


def test_kmeans_restarts_find_the_clusters_now_and_then_but_not_at_the_end() -> None:
    centres = torch.eye(6)[:4]
    made = quantizer(random(4, 6).float())
    restart = variants.KMeansRestart(made, total_steps=40, seed=0)
    changed = []
    for step in range(40):
        before = made.embedding.weight.clone()
        # Two steps' vectors make four rows' share of sixteen: what is older has no say.
        vectors = centres.repeat(2, 1) if step >= 2 else -centres.repeat(2, 1)
        restart(step, torch.bincount(torch.arange(4).repeat(2)).float(), vectors)
        if not torch.equal(before, made.embedding.weight):
            changed.append(step)
        made.embedding.weight.copy_(l2_normalize(made.embedding.weight + 0.01))
    assert changed == list(range(3, 36, 4))
    assert restart.restarts == 9


def test_kmeans_restart_sets_rows_to_means_of_the_newest_vectors() -> None:
    made = quantizer(random(2, 3).float())
    restart = variants.KMeansRestart(made, total_steps=30, seed=0)
    groups = l2_normalize(torch.tensor([[1.0, 0.1, 0], [1.0, -0.1, 0], [0, 0.1, 1.0], [0, -0.1, 1.0]]))
    for step, vectors in enumerate((-groups, groups, groups)):
        restart(step, torch.tensor([2.0, 2.0]), vectors)
    rows = made.embedding.weight[made.embedding.weight[:, 0].argsort(descending=True)]
    torch.testing.assert_close(rows, torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), atol=1e-6, rtol=0)
