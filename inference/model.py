"""A trained model on a recording: codes, features, spectra, predictions.

    import inference

    model = inference.load("checkpoints/labram-base.pth")
    features = model.embed(raw, pool="mean")  # raw: mne.io.Raw, mne.Epochs or an array with electrodes=[...]

MNE's data go through the makers' pipeline (band-pass, notch, 200 Hz), unless `prepared=True` says that they have been
through one. Arrays and tensors, in uV at 200 Hz, are taken as they are. Source: paper, section 2.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mne
import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from tqdm import tqdm

from devices import find_device
from eeg_data.hdf5 import UNIT
from eeg_data.levels import level_factors, owner_numbers, window_levels
from electrodes import embedding_rows
from errors import InputError, UsageError, printable
from inference import weights
from inference.recordings import Options, Windows, of_array, of_epochs, of_raw
from inference.weights import Description
from layers import PATCH_SAMPLES
from modeling_vqnsp import angles, signal_of, spectrum_targets
from training.centring import centring_of
from training.checkpoints import STAGES
from utils import set_precision

logger = logging.getLogger(__name__)

BATCH = 32  # windows
POOLS = ("patches", "electrodes", "mean")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
VERBS = {  # and the stages of checkpoints that can do each
    "tokenize": ("tokenizer",),
    "histogram": ("tokenizer",),
    "reconstruct": ("tokenizer",),
    "embed": ("pretraining", "classifier"),
    "predict": ("classifier",),
}


def treated(windows: Windows, flags: Mapping[str, Any]) -> Windows:
    """Scale signals (--scale_by, which reads all windows once, here), and say how predictions are to be centred."""
    if not windows.recordings:
        windows = replace(windows, recordings=[windows.name] * len(windows))
    windows, read = replace(windows, centring=centring_of(flags)), windows.read
    if windows.centring is not None:
        windows.centring.check(windows)
    if (by := flags.get("scale_by") or "none") == "none":
        return windows
    owners = owner_numbers(windows, by, flag="--scale_by")
    factors = level_factors(window_levels(read, range(len(windows))), owners, windows.where)
    return replace(windows, read=lambda number: read(number) * factors[number])


@dataclass(frozen=True)
class Result:
    """What a model gives for the windows of one recording: W windows, N electrodes, A patches of T samples.

    A verb sets its own arrays; the others are None. Spectra are z-scored over a patch's T frequencies; frequency k is
    k Hz (above T/2: negative). Phases of a tokenizer trained with --phase_loss sincos are radians, and its phase errors
    squared distances from the point on the unit circle: 1 for a prediction that knows nothing.
    """

    recording: str
    electrodes: tuple[str, ...]
    times: np.ndarray  # (W,) s, where each window begins
    window: float  # s
    codes: Any = None  # tokenize, reconstruct: (W, N, A) int64
    histogram: Any = None  # histogram: (codes of the codebook,) int64: how often each comes
    features: Any = None  # embed: (W, N, A, D), (W, N, D) or (W, D) float32: of patches, electrodes or windows
    amplitude: Any = None  # reconstruct: (W, N, A, T) float32, of the signal
    phase: Any = None
    predicted_amplitude: Any = None  # by the decoder, from the codes
    predicted_phase: Any = None
    amplitude_error: Any = None  # (W, N, A): mean squared difference over the frequencies
    phase_error: Any = None
    signal: Any = None  # (W, N, A*T) float32, uV
    predicted_signal: Any = None  # inverse Fourier transform of the predictions, with the true spectra's mean and std
    signal_error: Any = None  # (W, N, A): mean squared difference over the patch's mean square; silence has 1
    classes: tuple[str, ...] = ()  # predict: or names of the outputs of a regression
    probabilities: Any = None  # (W, classes) float32; of a regression the values
    recording_probabilities: Any = None  # (classes,): the mean over the windows


class Model:
    """A trained model in evaluation mode. Its methods take a recording and the options of `windows`."""

    def __init__(
        self, module: nn.Module, description: Description, *, where: str, device: str = "cpu", precision: str = "fp32"
    ) -> None:
        """description: of the module's weights; where: for messages; precision: of PRECISIONS."""
        if precision not in PRECISIONS:
            raise UsageError(f"--precision {precision}: allowed are {', '.join(PRECISIONS)}")
        self.description, self.where, self.stage = description, where, description.stage
        self.device, self.precision = find_device(device), precision
        self.autocast()  # refuses what the device does not have
        self.module: Any = module.eval().requires_grad_(False).to(self.device)
        outputs = description.settings.get("num_classes", 0)
        self.is_binary = description.task == "binary" or (not description.task and outputs == 1)
        unnamed = (f"class {number}" for number in range(2 if self.is_binary else outputs))
        self.classes = tuple(map(printable, description.classes)) or tuple(unnamed)

    def autocast(self) -> torch.autocast:
        """Return autocast in the model's precision, and switch TF32 on or off for the process."""
        kind = set_precision(self.precision, self.device)[0]
        return torch.autocast(self.device.type, dtype=kind, enabled=kind is not None)

    def check(self, verb: str, flags: Mapping[str, Any] | None = None) -> None:
        """Raise UsageError if this is no model for the verb.

        flags: center and scale_by of predictions. Raises UsageError if the training had one of them and these do not
        say what to do; warns of others than the training's.
        """
        if self.stage not in VERBS[verb]:
            needed = " or ".join(STAGES[stage] for stage in VERBS[verb])
            raise UsageError(
                f"{self.where} is {STAGES[self.stage]}; {verb} needs {needed}: choose another --checkpoint"
            )
        if verb == "embed" and "scale_by" in self.description.transductive:
            logger.warning("%s was trained with --scale_by, but embed takes signals as they are.", self.where)
        if verb == "predict" and not self.description.settings["num_classes"]:
            raise UsageError(f"{self.where} has no head, so it predicts nothing: embed, or choose another --checkpoint")
        asked = {name: flags.get(name) for name in ("center", "scale_by")} if flags and verb == "predict" else {}
        for name, given in asked.items():
            trained = self.description.transductive.get(name, "none")
            if trained != "none" and given is None:
                raise UsageError(
                    f"{self.where} was trained with --{name} {trained}: add --{name} recording (or subject, for "
                    f"labelled HDF5), or --{name} none for outputs that are off"
                )
            if (trained == "none") != (given in (None, "none")):
                text = "%s was trained with --%s %s, and predicts with --%s %s: its outputs are off."
                logger.warning(text, self.where, name, trained, name, given or "none")

    # One batch of windows. eeg: (B, N, A, T), units of 100 uV; channels: (N + 1,) rows

    def _tokenize(self, eeg: Tensor, channels: Tensor) -> dict[str, Tensor]:
        codes = self.module.get_codebook_indices(eeg, channels)
        return {"codes": rearrange(codes, "B (N A) -> B N A", N=eeg.shape[1])}

    def _reconstruct(self, eeg: Tensor, channels: Tensor) -> dict[str, Tensor]:
        quantized, codes, _ = self.module.encode(eeg, channels)
        outputs = {"codes": rearrange(codes, "(B N A) -> B N A", B=len(eeg), N=eeg.shape[1])}
        spectra = zip(
            spectrum_targets(eeg, self.module.phase_loss), self.module.decode(quantized, channels), strict=True
        )
        for name, (target, predicted) in zip(("amplitude", "phase"), spectra, strict=True):
            target, predicted = (rearrange(x, "B (N A) T -> B N A T", N=eeg.shape[1]) for x in (target, predicted))
            outputs[f"{name}_error"] = (target - predicted).square().mean(-1) * (target.shape[-1] // PATCH_SAMPLES)
            if target.shape[-1] > PATCH_SAMPLES:
                target, predicted = angles(target), angles(predicted.float())  # not in half precision
            outputs |= {name: target, f"predicted_{name}": predicted}
        predicted = signal_of(eeg, outputs["predicted_amplitude"], outputs["predicted_phase"], self.module.phase_loss)
        power = eeg.square().mean(-1)
        outputs["signal_error"] = (eeg - predicted).square().mean(-1) / torch.where(power > 0, power, 1.0)
        for name, patches in (("signal", eeg), ("predicted_signal", predicted)):
            outputs[name] = rearrange(patches, "B N A T -> B N (A T)") * UNIT
        return outputs

    def _embed(self, eeg: Tensor, channels: Tensor, *, pool: str) -> dict[str, Tensor]:
        module = self.module
        tokens = module.run_blocks(module.embed(eeg, channels))[:, 1:]  # (B, N*A, D)
        if module.fc_norm is None:
            tokens = module.norm(tokens)
        axes = {"patches": "B N A D", "electrodes": "B N D", "mean": "B D"}[pool]
        tokens = reduce(tokens, f"B (N A) D -> {axes}", "mean", N=eeg.shape[1])
        return {"features": tokens if module.fc_norm is None else module.fc_norm(tokens)}

    def _predict(self, eeg: Tensor, channels: Tensor) -> dict[str, Tensor]:
        return {"logits": self.module(eeg, channels)}

    def _probabilities(self, logits: Tensor) -> Tensor:
        if self.description.task == "regression":
            return logits
        if self.is_binary:
            return torch.cat((torch.sigmoid(-logits), torch.sigmoid(logits)), dim=1)
        return logits.softmax(1)

    @torch.inference_mode()
    def batches(
        self, verb: str, windows: Windows, *, batch_size: int = BATCH, pool: str = "patches"
    ) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Yield which windows a batch holds, and the arrays that `verb` gives for them, by name.

        Memory does not grow with the number of windows, but for the logits of all where these are to be centred.
        """
        parts = self._batches(verb, windows, batch_size, pool)
        if verb != "predict":
            yield from parts
            return
        if windows.centring is not None:
            groups = windows.centring.groups(windows)
            logits = windows.centring.centre(np.concatenate([arrays["logits"] for _, arrays in parts]), groups)
            parts = iter([(slice(0, len(windows)), {"logits": logits + self.module.head.bias.cpu().numpy()})])
        for part, arrays in parts:
            yield part, {"probabilities": self._probabilities(torch.from_numpy(arrays["logits"])).numpy()}

    def _batches(
        self, verb: str, windows: Windows, batch_size: int, pool: str
    ) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        if pool not in POOLS:
            raise UsageError(f"--pool {pool}: allowed are {', '.join(POOLS)}")
        if batch_size < 1:
            raise UsageError(f"--batch_size {batch_size}: must be at least 1")
        compute = partial(self._embed, pool=pool) if verb == "embed" else getattr(self, f"_{verb}")
        channels = self._channels(windows, verb)
        # disable=None: shown on a terminal only.
        with tqdm(total=len(windows), desc=windows.name, unit="window", leave=False, disable=None) as bar:
            for first in range(0, len(windows), batch_size):
                part = slice(first, min(first + batch_size, len(windows)))
                # Divided on the host, as in training: a GPU would multiply by the rounded inverse.
                eeg = (torch.from_numpy(windows.batch(part.start, part.stop)) / UNIT).to(self.device)
                with self.autocast():
                    outputs = compute(rearrange(eeg, "B N (A T) -> B N A T", T=PATCH_SAMPLES), channels)
                if not all(torch.isfinite(value).all() for value in outputs.values()):
                    raise InputError(
                        f"{windows.where}: windows {part.start} to {part.stop - 1} give NaN or infinity: the signal is "
                        f"of another unit (--scale), or the weights of {self.where} are damaged"
                    )
                wide = {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}
                yield part, {name: value.cpu().numpy() for name, value in wide.items()}
                bar.update(part.stop - part.start)

    def _channels(self, windows: Windows, verb: str) -> Tensor:
        """Rows of the position embedding, (N + 1,). Raises InputError for electrodes without one, or not the head's.

        Warns of other electrodes than a classifier was trained with.
        """
        trained, given = self.description.electrodes, windows.electrodes
        if self.stage == "classifier" and trained and set(trained) != set(given):
            missing, new = [n for n in trained if n not in given], [n for n in given if n not in trained]
            differences = f"missing: {', '.join(missing) or 'none'}; new: {', '.join(new) or 'none'}"
            text = "%s: other electrodes than %s was trained with (%s): predictions may be worse."
            logger.warning(text, windows.where, self.where, differences)
        trunk = self.module.encoder if self.stage == "tokenizer" else self.module
        rows = trunk.pos_embed.shape[1] if trunk.pos_embed is not None else 1 << 30
        channels = torch.tensor(embedding_rows(given, table_rows=rows, where=windows.where))
        if verb == "predict":
            self.module.head.check(channels, where=windows.where)
        return channels.to(self.device)

    # Whole recordings

    def windows(self, eeg: Any, *, electrodes: Sequence[str] | None = None, **options: Any) -> Windows:
        """Windows of a recording: `mne.io.Raw`, `mne.Epochs`, or an array or tensor (N, time) or (pieces, N, time).

        electrodes: names of an array's rows. options: of `recordings.Options`: window and stride in s (default: a
        classifier's own window, else as many seconds as 256 patches allow, 16 at most; the window), prepared (MNE's
        data have been filtered and resampled to 200 Hz), pipeline (filters and names in place of the default ones),
        scale (factor on the values; without it, amplitudes that no EEG in uV has are refused).
        Raises InputError for a recording that cannot be used.
        """
        if electrodes is not None and isinstance(eeg, mne.io.BaseRaw | mne.BaseEpochs):
            raise UsageError("electrodes name an array's rows; channels of MNE's objects have names: pipeline renames")
        if options.get("window") is None:
            options["window"] = self.description.window_seconds or None
        how = Options(**options)
        if isinstance(eeg, mne.io.BaseRaw):
            return of_raw(eeg, how)
        if isinstance(eeg, mne.BaseEpochs):
            return of_epochs(eeg, how)
        if isinstance(eeg, Tensor):
            eeg = eeg.detach().cpu()
            eeg = (eeg.float() if eeg.dtype == torch.bfloat16 else eeg).numpy()  # NumPy has no bfloat16
        if isinstance(eeg, np.ndarray):
            return of_array(eeg, electrodes, how)
        raise InputError(
            f"{type(eeg).__name__} is no recording: give mne.io.Raw, mne.Epochs, a NumPy array or a tensor"
        )

    def _cut(self, eeg: Any, options: dict[str, Any]) -> Windows:
        if isinstance(eeg, Windows) and options:
            raise UsageError(f"{', '.join(options)}: the windows are cut already; give it to the call that cuts them")
        return eeg if isinstance(eeg, Windows) else self.windows(eeg, **options)

    def _run(self, verb: str, eeg: Any, options: dict[str, Any], **batching: Any) -> Result:
        """Run a verb on a whole recording. options: of `windows`."""
        self.check(verb)
        windows = self._cut(eeg, options)
        of_batches = "tokenize" if verb == "histogram" else verb
        parts = [arrays for _, arrays in self.batches(of_batches, windows, **batching)]
        arrays: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if verb == "predict":
            mean = arrays["probabilities"].mean(axis=0, dtype=np.float64)
            arrays |= {"classes": self.classes, "recording_probabilities": mean}
        if verb == "histogram":
            codes = arrays.pop("codes").ravel()
            arrays["histogram"] = np.bincount(codes, minlength=self.module.quantize.codebook_size)
        seconds = windows.samples / PATCH_SAMPLES
        return Result(windows.name, windows.electrodes, windows.starts, seconds, **arrays)

    def tokenize(self, eeg: Any, *, batch_size: int = BATCH, **options: Any) -> Result:
        """Code of every patch, by a tokenizer."""
        return self._run("tokenize", eeg, options, batch_size=batch_size)

    def histogram(self, eeg: Any, *, batch_size: int = BATCH, **options: Any) -> Result:
        """How often each code comes in a recording, by a tokenizer: a bag of codes."""
        return self._run("histogram", eeg, options, batch_size=batch_size)

    def reconstruct(self, eeg: Any, *, batch_size: int = BATCH, **options: Any) -> Result:
        """True spectrum of every patch, the one that a tokenizer predicts from the codes, and the signal of both."""
        return self._run("reconstruct", eeg, options, batch_size=batch_size)

    def reconstruction_error(self, windows: Windows, *, batch_size: int = BATCH) -> float:
        """Mean error of a tokenizer's amplitudes plus that of its phases."""
        parts = [arrays for _, arrays in self.batches("reconstruct", windows, batch_size=batch_size)]
        errors = [part["amplitude_error"] + part["phase_error"] for part in parts]
        return float(np.concatenate(errors).mean(dtype=np.float64))

    def embed(self, eeg: Any, *, pool: str = "patches", batch_size: int = BATCH, **options: Any) -> Result:
        """Features of a masked model or a classifier: of every patch, or means over time or over time and electrodes.

        The mean over both is the input of a classifier's head, if that takes the mean and not the CLS token.
        """
        return self._run("embed", eeg, options, batch_size=batch_size, pool=pool)

    def predict(
        self,
        eeg: Any,
        *,
        batch_size: int = BATCH,
        center: str | None = None,
        center_windows: int | None = None,
        scale_by: str | None = None,
        **options: Any,
    ) -> Result:
        """Probability of every class, by a classifier, or the values of a regression.

        center, scale_by: recording (or none), for a classifier that was trained with --center or --scale_by.
        """
        flags = {"center": center, "center_windows": center_windows, "scale_by": scale_by}
        self.check("predict", flags)
        return self._run("predict", treated(self._cut(eeg, options), flags), {}, batch_size=batch_size)


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    averaged: bool = False,
    precision: str = "fp32",
    task: str | None = None,
) -> Model:
    """Load a checkpoint of any stage, recognised by its keys and shapes. averaged: the weights of --model_ema.

    precision: fp32, bf16, on GPUs also tf32 and fp16, of what the model computes; its weights and results stay float32.
    task: the data set whose classifier to take, of a checkpoint that holds several.
    A masked model becomes the trunk of a classifier, see `weights.load`. Raises InputError for a file that is no
    checkpoint, or of another architecture.
    """
    module, description = weights.load(path, as_features=True, averaged=averaged, task=task)
    return Model(module, description, where=str(path), device=device, precision=precision)
