"""A trained model gives for a recording what its module gives for windows cut by hand."""

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import inference
from data_helpers import TINY, signal
from dataset_maker.pipeline import FilterSettings, Pipeline
from electrodes import ELECTRODES
from errors import InputError, UsageError
from inference.model import Model
from inference_helpers import CLASSIFIER, DATA, MASKED, NAMES, random_module, saved
from maker_helpers import noise, raw_of
from modeling_vqnsp import angles, signal_of, spectrum_targets

Modules = dict[str, Any]
Models = dict[str, Model]
ROWS = [0, *(ELECTRODES.index(name.upper()) + 1 for name in NAMES)]


@pytest.fixture(scope="module")
def modules() -> Modules:
    return {
        "tokenizer": random_module(TINY, n_code=64, code_dim=8, quantize_kmeans_init=False),
        "pretraining": random_module(MASKED, vocab_size=64),
        "classifier": random_module(CLASSIFIER, num_classes=3),
    }


@pytest.fixture(scope="module")
def models(modules: Modules, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {stage: inference.load(saved(folder / f"{stage}.pth", module)) for stage, module in modules.items()}


def batch(eeg: np.ndarray, seconds: int) -> torch.Tensor:
    """Consecutive windows of a signal (N, time) in uV, as the models take them."""
    count = eeg.shape[1] // (200 * seconds)
    cut = [eeg[:, 200 * seconds * i : 200 * seconds * (i + 1)].reshape(len(eeg), seconds, 200) for i in range(count)]
    return torch.from_numpy(np.stack(cut).astype(np.float32) / 100)


# What is computed


def test_codes_of_a_recording_are_those_of_windows_cut_from_what_mne_filters(modules: Modules, models: Models) -> None:
    raw = raw_of(NAMES, 250, noise(3, 40, 250))
    result = models["tokenizer"].tokenize(raw, window=4)
    filtered = raw.copy().filter(0.1, 75, verbose="error").notch_filter(50, verbose="error")
    eeg = filtered.resample(200, verbose="error").get_data() * 1e6
    expected = modules["tokenizer"].get_codebook_indices(batch(eeg, 4), ROWS).view(10, 3, 4).numpy()
    assert (result.codes == expected).mean() > 0.99, "but for patches that lie equally near to two codes"
    assert len(np.unique(result.codes)) > 5
    assert result.electrodes == ("C3", "CZ", "C4") and result.window == 4
    assert result.times.tolist() == [4 * n for n in range(10)]


def test_every_kind_of_recording_gives_the_same(models: Models) -> None:
    eeg = torch.from_numpy(signal(3, 12 * 200)).bfloat16().float().numpy()
    model, options = models["pretraining"], {"electrodes": NAMES, "window": 4}
    expected = model.embed(eeg, **options).features
    assert expected.shape == (3, 3, 4, 200)
    raw = raw_of(NAMES, 200, eeg.astype(np.float64))
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (eeg.astype(np.float64), options),
        (torch.from_numpy(eeg).requires_grad_(), options),
        (torch.from_numpy(eeg).bfloat16(), options),
        (eeg.reshape(3, 3, 800).transpose(1, 0, 2), {"electrodes": NAMES}),
        (raw, {"prepared": True, "window": 4}),
        (mne.make_fixed_length_epochs(raw, 4, verbose="error"), {"prepared": True}),
        (model.windows(eeg, **options), {}),
    ]
    for recording, own in kinds:
        result = model.embed(recording, **own)
        np.testing.assert_allclose(result.features, expected, atol=1e-5)
        assert result.times.tolist() == [0, 4, 8]


@pytest.mark.parametrize("stage", ["pretraining", "classifier"])
def test_features_are_means_of_tokens_under_the_trained_norm(modules: Modules, models: Models, stage: str) -> None:
    eeg = signal(3, 8 * 200)
    module = modules[stage]
    trunk, norm = (module.student, module.student.norm) if stage == "pretraining" else (module, module.fc_norm)
    trunk.cls_position_row, before = "own", trunk.cls_position_row  # as in fine-tuning
    with torch.no_grad():
        tokens = trunk.run_blocks(trunk.embed(batch(eeg, 4), ROWS))[:, 1:].view(2, 3, 4, 200)
    trunk.cls_position_row = before
    means = {"patches": tokens, "electrodes": tokens.mean(2), "mean": tokens.mean((1, 2))}
    for pool, mean in means.items():
        expected = F.layer_norm(mean, (200,), norm.weight, norm.bias, norm.eps).detach().numpy()
        result = models[stage].embed(eeg, electrodes=NAMES, window=4, pool=pool)
        np.testing.assert_allclose(result.features, expected, atol=2e-5)


def test_the_heads_input_is_the_mean_features(modules: Modules, models: Models) -> None:
    eeg = signal(3, 8 * 200)
    features = torch.from_numpy(models["classifier"].embed(eeg, electrodes=NAMES, window=4, pool="mean").features)
    expected = modules["classifier"].head(features).softmax(1).detach().numpy()
    result = models["classifier"].predict(eeg, electrodes=NAMES, window=4)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(result.recording_probabilities, expected.mean(0), atol=1e-5)
    assert result.classes == ("class 0", "class 1", "class 2")


def test_a_classifier_that_pools_by_cls_is_normed_before_the_mean(tmp_path: Path) -> None:
    module: Any = random_module(CLASSIFIER, num_classes=1, use_mean_pooling=False)
    eeg = signal(3, 4 * 200)
    model = inference.load(saved(tmp_path / "a.pth", module))
    with torch.no_grad():
        tokens = module.norm(module.run_blocks(module.embed(batch(eeg, 4), ROWS))[:, 1:])
        logit = module(batch(eeg, 4), ROWS)
    features = model.embed(eeg, electrodes=NAMES, pool="mean").features
    np.testing.assert_allclose(features, tokens.mean(1).numpy(), atol=1e-5)
    probabilities = model.predict(eeg, electrodes=NAMES).probabilities
    np.testing.assert_allclose(probabilities[:, 1:], 1 / (1 + np.exp(-logit.numpy())), atol=1e-6)


def test_a_head_for_electrodes_finds_them_in_any_order_and_refuses_others(tmp_path: Path) -> None:
    module: Any = random_module(CLASSIFIER, num_classes=1, pool="electrodes", electrodes=3)
    module.head.rows.copy_(torch.tensor(ROWS[1:]))
    eeg, model = signal(3, 4 * 200), inference.load(saved(tmp_path / "a.pth", module))
    with torch.no_grad():
        logit = module(batch(eeg, 2), ROWS).numpy()
    for order in ([0, 1, 2], [2, 0, 1]):
        result = model.predict(eeg[order], electrodes=[NAMES[i] for i in order], window=2)
        np.testing.assert_allclose(result.probabilities[:, 1:], 1 / (1 + np.exp(-logit)), atol=1e-6)
    with pytest.raises(InputError, match=r"array: electrodes C3, CZ, O1, but .* C3, CZ, C4: give exactly these"):
        model.predict(eeg, electrodes=["C3", "Cz", "O1"], window=2)
    assert model.embed(eeg, electrodes=["C3", "Cz", "O1"], window=2).features.shape == (2, 3, 2, 200)


def test_spectra_are_numpys_and_those_that_the_codes_stand_for(modules: Modules, models: Models) -> None:
    eeg = signal(3, 4 * 200)
    result = models["tokenizer"].reconstruct(eeg, electrodes=NAMES, window=2)
    spectrum = np.fft.fft(batch(eeg, 2).double().numpy())  # (2, 3, 2, 200)
    for name, values in (("amplitude", np.abs(spectrum)), ("phase", np.angle(spectrum))):
        mean, deviation = values.mean((1, 2, 3), keepdims=True), values.std((1, 2, 3), ddof=1, keepdims=True)
        bins = np.r_[1:100, 101:200]  # at 0 and 100 Hz the phase is 0 or pi by a last bit
        expected = ((values - mean) / deviation)[..., bins]
        np.testing.assert_allclose(getattr(result, name)[..., bins], expected, atol=0.02)
    codebook = modules["tokenizer"].quantize.embedding.weight.detach()
    quantized = codebook[torch.from_numpy(result.codes)].permute(0, 3, 1, 2)  # (B, width, N, A)
    with torch.no_grad():
        amplitude, phase = modules["tokenizer"].decode(quantized, ROWS)
    np.testing.assert_allclose(result.predicted_amplitude, amplitude.view(2, 3, 2, 200).numpy(), atol=1e-4)
    np.testing.assert_allclose(result.predicted_phase, phase.view(2, 3, 2, 200).numpy(), atol=1e-4)
    np.testing.assert_allclose(result.phase_error, ((result.phase - result.predicted_phase) ** 2).mean(-1), rtol=1e-4)


@pytest.mark.parametrize("phase_loss", ["angle", "sincos"])
def test_the_signal_is_the_inverse_transform_of_the_spectra(tmp_path: Path, phase_loss: str) -> None:
    module: Any = random_module(TINY, n_code=64, code_dim=8, quantize_kmeans_init=False, phase_loss=phase_loss)
    eeg = signal(3, 4 * 200)
    eeg[2, :200] = 0  # a patch of silence
    result = inference.load(saved(tmp_path / "t.pth", module)).reconstruct(eeg, electrodes=NAMES, window=2)
    patches = batch(eeg, 2)
    spectrum = np.fft.fft(patches.double().numpy())

    def undone(z: np.ndarray, values: np.ndarray) -> np.ndarray:
        return z * values.std((1, 2, 3), ddof=1, keepdims=True) + values.mean((1, 2, 3), keepdims=True)

    size = np.maximum(undone(result.predicted_amplitude, np.abs(spectrum)), 0)
    assert (size == 0).any(), "a predicted amplitude is never below 0"
    phase = result.predicted_phase
    phase = undone(phase, np.angle(spectrum)) if phase_loss == "angle" else phase
    expected = np.fft.ifft(size * np.exp(1j * phase)).real  # (2, 3, 2, 200), units of 100 uV
    atol = 1 if phase_loss == "angle" else 0.02  # uV; last bits decide phases of 0 or pi, so their mean and deviation
    np.testing.assert_allclose(result.predicted_signal, 100 * expected.reshape(2, 3, 400), atol=atol)
    np.testing.assert_allclose(result.signal, eeg.reshape(3, 2, 400).swapaxes(0, 1))
    true = patches.numpy()
    shares = ((true - expected) ** 2).mean(-1) / np.maximum((true**2).mean(-1), 1e-30)
    np.testing.assert_allclose(result.signal_error[:, :2], shares[:, :2], rtol=0.05)
    assert np.isfinite(result.signal_error).all()
    targets = (x.view(2, 3, 2, -1) for x in spectrum_targets(patches, phase_loss))
    amplitude, given = (angles(x) if x.shape[-1] > 200 else x for x in targets)
    np.testing.assert_allclose(signal_of(patches, amplitude, given, phase_loss), true, atol=1e-5)


def test_phases_of_a_sincos_tokenizer_are_radians_and_their_errors_distances_on_the_circle(tmp_path: Path) -> None:
    module: Any = random_module(TINY, n_code=64, code_dim=8, quantize_kmeans_init=False, phase_loss="sincos")
    eeg = signal(3, 4 * 200)
    result = inference.load(saved(tmp_path / "sincos.pth", module)).reconstruct(eeg, electrodes=NAMES, window=2)
    with torch.no_grad():
        points = module.decode(module.encode(batch(eeg, 2), ROWS)[0], ROWS)[1].view(2, 3, 2, 2, 200).numpy()
    predicted = points[..., 0, :] + 1j * points[..., 1, :]
    true = np.angle(np.fft.fft(batch(eeg, 2).double().numpy()))
    bins = np.r_[1:100, 101:200]  # at 0 and 100 Hz the phase is 0 or pi by a last bit
    np.testing.assert_allclose(np.exp(1j * result.phase[..., bins]), np.exp(1j * true[..., bins]), atol=1e-3)
    np.testing.assert_allclose(np.exp(1j * result.predicted_phase), predicted / np.abs(predicted), atol=1e-3)
    np.testing.assert_allclose(result.phase_error, (np.abs(predicted - np.exp(1j * true)) ** 2).mean(-1), atol=1e-3)


@pytest.mark.parametrize(
    ("task", "classes", "outputs"),
    [("binary", ["rest", "task"], 1), ("multiclass", ["a\x1b[31m", "b\nc"], 2), ("regression", ["left knee"], 1)],
)
def test_predictions_are_named_and_scaled_as_the_task_says(
    tmp_path: Path, task: str, classes: list[str], outputs: int
) -> None:
    module: Any = random_module(CLASSIFIER, num_classes=outputs)
    model = inference.load(saved(tmp_path / "a.pth", module, data_set=DATA | {"task": task, "classes": classes}))
    eeg = signal(3, 6 * 200)
    result = model.predict(eeg, electrodes=NAMES)
    assert result.window == 2, "the window of its training"
    with torch.no_grad():
        logits = module(batch(eeg, 2), ROWS).double().numpy()
    p = 1 / (1 + np.exp(-logits))
    expected = {
        "binary": np.concatenate([1 - p, p], axis=1),
        "multiclass": np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
        "regression": logits,
    }
    np.testing.assert_allclose(result.probabilities, expected[task], atol=1e-5)
    printable = {"a\x1b[31m": r"a\x1b[31m", "b\nc": r"b\nc"}  # a terminal obeys none of it
    assert result.classes == tuple(printable.get(name, name) for name in classes)


def test_any_number_of_electrodes_and_seconds(models: Models) -> None:
    for electrodes, seconds in ((1, 1), (1, 16), (128, 2)):
        options: dict[str, Any] = {"electrodes": ELECTRODES[:electrodes], "window": seconds}
        eeg = signal(electrodes, seconds * 200)
        assert models["tokenizer"].tokenize(eeg, **options).codes.shape == (1, electrodes, seconds)
        assert models["pretraining"].embed(eeg, **options, pool="electrodes").features.shape == (1, electrodes, 200)


# What is refused


def test_a_verb_of_another_stage_names_the_checkpoint_that_it_needs(models: Models) -> None:
    for stage, verb in (("pretraining", "tokenize"), ("tokenizer", "embed"), ("pretraining", "predict")):
        with pytest.raises(UsageError, match=rf"{stage}.pth is a .*; {verb} needs .*: choose another --checkpoint"):
            getattr(models[stage], verb)(signal(3, 400), electrodes=NAMES)


def test_an_electrode_without_a_row_in_the_model_is_named(models: Models) -> None:
    with pytest.raises(InputError, match="has no row for FP1-F3"):
        models["pretraining"].embed(signal(1, 400), electrodes=["FP1-F3"])


def test_values_that_are_not_allowed_are_named(models: Models) -> None:
    cases: dict[str, dict[str, Any]] = {
        "--window 0": {"window": 0},
        "--window 1.5": {"window": 1.5},
        "--batch_size 0": {"batch_size": 0},
        "--scale": {"scale": 1e300},
        "--stride": {"stride": 0},
        "the models take 200 Hz": {"pipeline": Pipeline(filter=FilterSettings(sampling_rate=None))},
        "--pool time": {"pool": "time"},
        "list is no recording": {"eeg": [[1.0]]},
        "electrodes name an array's rows": {"eeg": raw_of(["F3", "FZ", "F4"], 200, noise(3, 8, 200))},
    }
    for error, options in cases.items():
        with pytest.raises(InputError, match=error):
            models["pretraining"].embed(**{"eeg": signal(3, 800), "electrodes": NAMES, **options})


def test_results_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    module: Any = random_module(CLASSIFIER, num_classes=2)
    with torch.no_grad():
        module.head.bias[1] = torch.nan
    model = inference.load(saved(tmp_path / "a.pth", module))
    with pytest.raises(InputError, match=r"windows 0 to 2 give NaN or infinity: .*a.pth"):
        model.predict(signal(3, 1200), electrodes=NAMES, window=2)


def test_a_classifier_without_a_head_embeds_but_does_not_predict(tmp_path: Path) -> None:
    model = inference.load(saved(tmp_path / "a.pth", random_module(CLASSIFIER, num_classes=0)))
    with pytest.raises(UsageError, match=r"a.pth has no head"):
        model.predict(signal(3, 400), electrodes=NAMES)
    assert model.embed(signal(3, 400), electrodes=NAMES, pool="mean").features.shape == (1, 200)


def test_other_electrodes_than_those_of_the_training_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = inference.load(saved(tmp_path / "a.pth", random_module(CLASSIFIER, num_classes=1), data_set=DATA))
    model.predict(signal(3, 800), electrodes=["C4", "Cz", "C3"])
    assert caplog.text == "", "their order does not matter"
    model.predict(signal(3, 800), electrodes=["C4", "Cz", "O1"])
    assert "(missing: C3; new: O1)" in caplog.text


@pytest.mark.parametrize("stage", ["tokenizer", "classifier"])
def test_a_stated_precision_rounds_outputs_not_codes_and_results_stay_float32(
    tmp_path: Path, modules: Modules, models: Models, stage: str
) -> None:
    path, eeg = saved(tmp_path / "model.pth", modules[stage]), signal(3, 3, 2400)
    exact, half = models[stage], inference.load(path, precision="bf16")
    if stage == "tokenizer":
        first, second = (one.reconstruct(eeg, electrodes=NAMES) for one in (exact, half))
        assert np.array_equal(first.codes, second.codes)
        pair = first.predicted_phase, second.predicted_phase
    else:
        pair = tuple(one.embed(eeg, electrodes=NAMES).features for one in (exact, half))
    assert pair[1].dtype == np.float32 and 0 < np.abs(pair[0] - pair[1]).max() < 0.1 * np.abs(pair[0]).max()
    for precision, words in (("fp16", "needs a GPU"), ("tf32", "needs a GPU"), ("half", "allowed are fp32")):
        with pytest.raises(UsageError, match=words):
            inference.load(path, precision=precision)
