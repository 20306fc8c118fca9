"""The tokenizer's codes of every window, computed once and kept in a folder (--cache_codes): training needs none then.

A folder has a part for each data set, `train` and `val`, with a manifest and pieces. The manifest says what the codes
depend on and, once all are there, the SHA-256 of each piece. A piece is an `.npy` file of int16 with the codes of
PIECE windows of one montage, (windows, N*A); it is whole or not there, and never written again. One run at a time fills
a folder, any number read it through memory maps. Batches are made in `eeg_data.py`.
"""

import io
import json
import logging
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from batches import Key
from eeg_data import Loaders, MontageWindows, PretrainingDataset, collate, make_loader
from errors import InputError, Interrupted, UsageError
from files import check_writable, sha256, write_json, written_aside
from fingerprint import digest_of
from hdf5_files import readable
from interruption import EXIT_CODES
from layers import PATCH_SAMPLES
from modeling_vqnsp import VQNSP
from progress import Progress, duration
from utils import Run

logger = logging.getLogger(__name__)

FORMAT = 2  # raised with any change of the files, or of the codes that the tokenizer finds
CODE = np.dtype("<i2")
MAX_CODES = 2**15  # that int16 can tell apart
PIECE = 2**12  # windows: what a process that is killed has to compute again
LOOKS = 5  # seconds of each recording that tell whether its signal is the same
POLL = 2.0  # seconds between two looks at a folder that another run fills
MANIFEST = "manifest.json"


def add_arguments(group: Any) -> None:
    """The flag of the cache."""
    group.add_argument(
        "--cache_codes",
        type=Path,
        default=None,
        metavar="DIR",
        help="compute the codes of all windows before the first epoch, keep them there, and train without tokenizer",
    )


class Piece(NamedTuple):
    """A file of codes."""

    montage: int
    number: int  # among those of its montage
    first: int  # window
    stop: int
    patches: int  # of a window

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.montage}-{self.number}.npy"

    def open(self, folder: Path) -> np.ndarray:
        """A memory map of its codes, (windows, N*A) int16. Raises InputError for a file that is not what it should be.

        Never unpickles anything.
        """
        path, shape = folder / self.name, (self.stop - self.first, self.patches)
        if not path.exists():
            raise InputError(f"{path} is missing: {way_out(folder)}")
        with readable(path, way_out(folder)):
            found = np.lib.format.open_memmap(path, mode="r")
        if found.shape != shape or found.dtype != CODE:
            raise InputError(f"{path} holds {found.dtype} {found.shape}, expected int16 {shape}: {way_out(folder)}")
        return found


def pieces_of(montages: Sequence[MontageWindows]) -> list[Piece]:
    """The pieces of a data set, in the order of its windows."""
    sizes = [(len(windows), len(windows.montage) * windows.window // PATCH_SAMPLES) for windows in montages]
    return [
        Piece(montage, number, first, min(first + PIECE, size), patches)
        for montage, (size, patches) in enumerate(sizes)
        for number, first in enumerate(range(0, size, PIECE))
    ]


def way_out(folder: Path) -> str:
    """What to do about a folder that cannot be used."""
    return f"delete {folder}, and the same command computes its codes again, or choose another --cache_codes"


def digest_of_signals(montages: Sequence[MontageWindows]) -> str:
    """Digest of what the recordings hold, from a few seconds of each: whole files would take as long as an epoch.

    A file made anew with another filter, reference or unit differs in all of them. Names, lengths and valid seconds
    are in the windows' own digest.
    """
    recordings = [recording for windows in montages for recording in windows.recordings]
    return digest_of(
        recording.read(int(start), PATCH_SAMPLES)
        for recording in recordings
        for start in np.linspace(0, max(0, recording.length - PATCH_SAMPLES), LOOKS)
    )


class CachedCodes:
    """Codes by montage and window, from memory maps that each process opens where it first needs them."""

    def __init__(self, folder: Path, pieces: Sequence[Piece]) -> None:
        """pieces: all of a data set, all there."""
        self.folder = folder
        self._size = PIECE
        self._pieces = {(piece.montage, piece.number): piece for piece in pieces}
        self._maps: dict[tuple[int, int], np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For loading processes: a memory map would be sent as a whole."""
        return {**vars(self), "_maps": {}}

    def __call__(self, montage: int, window: int) -> Tensor:
        """Codes of a window, (N*A,) int16."""
        number, row = divmod(window, self._size)
        if (montage, number) not in self._maps:
            self._maps[montage, number] = self._pieces[montage, number].open(self.folder)
        return torch.from_numpy(self._maps[montage, number][row].astype(np.int16))


class PieceBatches(Sampler[list[Key]]):
    """The windows of pieces in order, batches of one piece each; process r takes pieces r, r + W, ..."""

    def __init__(self, pieces: Sequence[Piece], batch_size: int, *, rank: int, processes: int) -> None:
        """batch_size: windows."""
        self.pieces = list(pieces[rank::processes])
        self.batch_size = batch_size
        self.rounds = max(self._count(pieces[other::processes]) for other in range(processes))

    def _count(self, pieces: Sequence[Piece]) -> int:
        return sum(-(-(piece.stop - piece.first) // self.batch_size) for piece in pieces)

    def __len__(self) -> int:
        """Batches of this process."""
        return self._count(self.pieces)

    def __iter__(self) -> Iterator[list[Key]]:
        """Keys of each batch."""
        for piece in self.pieces:
            for first in range(piece.first, piece.stop, self.batch_size):
                stop = min(first + self.batch_size, piece.stop)
                yield [(0, piece.montage, window) for window in range(first, stop)]


class Lock:
    """Held by the one run that fills a folder, at the longest until its process ends."""

    def __init__(self, path: Path) -> None:
        """Not held yet."""
        self.path = path
        self._file: IO[str] | None = None

    def take(self) -> bool:
        """Whether this run holds it now."""
        file = self.path.open("w")
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock would live on in loading processes
        except (BlockingIOError, PermissionError):
            file.close()
            return False
        except (ImportError, OSError):  # Windows, file systems without locks
            pass
        self._file = file
        return True

    def release(self) -> None:
        """Let others fill the folder."""
        if self._file is not None:
            self._file.close()


class Part:
    """One data set's codes in a folder: what is there, checked, and what is missing. Its methods are for process 0."""

    def __init__(self, folder: Path, dataset: PretrainingDataset, key: dict[str, Any]) -> None:
        """key: what decides the codes beside the windows, as plain JSON."""
        self.folder, self.pieces = folder, pieces_of(dataset.montages)
        self.dataset, self._key = PretrainingDataset(dataset.montages, seed=dataset.seed), key  # without masks
        self._lock = Lock(folder / ".lock")

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """What decides the codes, as plain JSON."""
        windows = "{windows} ({digest})".format(**self.dataset.summary())
        return {**self._key, "windows": windows, "signals": digest_of_signals(self.dataset.montages)}

    def missing(self) -> list[int] | None:
        """Numbers of the pieces to compute, with the folder held for it; none: all are there.

        None: another run is computing them.
        """
        sums = self._sums()
        if sums is None:
            check_writable(self.folder, "--cache_codes")
            if not self._lock.take():
                return None
            sums = self._sums()  # by now all may be there
        if sums is not None:
            self._check(sums)
            return []
        self._claim()
        left = [number for number, piece in enumerate(self.pieces) if not (self.folder / piece.name).exists()]
        for number in set(range(len(self.pieces))) - set(left):
            self.pieces[number].open(self.folder)
        if not left:
            self.finish()
        return left

    def finish(self) -> None:
        """Write down that all pieces are there."""
        sums = {}
        for piece in self.pieces:
            piece.open(self.folder)
            sums[piece.name] = sha256(self.folder / piece.name)
        write_json(self.folder / MANIFEST, {"made of": self.made_of, "pieces": sums})

    def release(self) -> None:
        """Let other runs fill the folder."""
        self._lock.release()

    def _sums(self) -> dict[str, str] | None:
        """SHA-256 of each piece, None if not all are there. Raises InputError for codes of something else."""
        path = self.folder / MANIFEST
        with readable(path, way_out(self.folder)):
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
            except (FileNotFoundError, NotADirectoryError):
                return None
            made_of, sums = dict(manifest["made of"]), manifest.get("pieces")
            sums = None if sums is None else dict(sums)
        own = self.made_of
        names = [name for name in {**own, **made_of} if made_of.get(name) != own.get(name)]
        if names:
            found = ", ".join(f"{name} {made_of.get(name)}, here {own.get(name)}" for name in names)
            raise InputError(f"{self.folder} holds codes of something else ({found}): {way_out(self.folder)}")
        return sums

    def _check(self, sums: dict[str, str]) -> None:
        """Raise InputError unless every piece is what was written. Reads all of them, which also makes them warm."""
        for piece in self.pieces:
            piece.open(self.folder)
            if sums.get(piece.name) != sha256(self.folder / piece.name):
                path = self.folder / piece.name
                raise InputError(f"{path} is damaged (its SHA-256 is another): {way_out(self.folder)}")

    def _claim(self) -> None:
        """Write the manifest into an empty folder; take up what a run left that was stopped."""
        path = self.folder / MANIFEST
        for part in self.folder.glob(".*.part"):  # of a process that was killed while it wrote
            part.unlink(missing_ok=True)
        if not path.exists():
            if others := [one.name for one in self.folder.iterdir() if not one.name.startswith(".")]:
                raise UsageError(
                    f"--cache_codes: {self.folder} holds other files ({min(others)}) and no {MANIFEST}: choose another "
                    "folder, or delete this one"
                )
            write_json(path, {"made of": self.made_of})


def write_piece(path: Path, codes: np.ndarray) -> None:
    """Write codes, (windows, N*A), as int16, aside and then renamed. Raises UsageError if they cannot be written."""
    content = io.BytesIO()
    np.lib.format.write_array(content, np.ascontiguousarray(codes, dtype=CODE), allow_pickle=False)
    with written_aside(path) as part:
        part.write_bytes(content.getbuffer())


def compute(folder: Path, loader: DataLoader, tokenizer: VQNSP, run: Run) -> None:
    """Write this process's pieces. loader: with `PieceBatches`, which have the same rounds on all processes."""
    batches: PieceBatches = loader.batch_sampler  # type: ignore[assignment]
    source, pieces = iter(loader), iter(batches.pieces)
    piece, codes, samples = next(pieces, None), [], 0
    with closing(Progress(run.is_main, f"codes of {folder.name}", batches.rounds)) as progress:
        for _ in range(batches.rounds):
            batch = next(source, None)
            if batch is not None:
                assert piece is not None
                eeg, channels, *_ = batch.to(run)
                with run.autocast():
                    codes.append(tokenizer.get_codebook_indices(eeg, channels).to(torch.int16))  # (B, N*A)
                samples += len(eeg) * run.processes
                if sum(map(len, codes)) == piece.stop - piece.first:
                    write_piece(folder / piece.name, torch.cat(codes).cpu().numpy())
                    piece, codes = next(pieces, None), []
            progress.step(_numbers(progress, samples) if progress.due() else None)
            run.interruption.agree()


def _numbers(progress: Progress, samples: int) -> str:
    done = progress.done + 1
    left = progress.seconds / done * (progress.total - done)
    return f"{samples / max(progress.seconds, 1e-9):.1f} windows/s, left {duration(left)}"


@contextmanager
def _said_when_stopped(run: Run) -> Iterator[None]:
    """A signal ends the run with what it was doing; there is nothing to save but the pieces."""

    def stop(number: Any) -> NoReturn:
        text = f"stopped by {number.name} while codes were computed; the same command goes on from here"
        raise Interrupted(text, EXIT_CODES[number])

    before, run.interruption.on_stop = run.interruption.on_stop, stop
    try:
        yield
    finally:
        run.interruption.on_stop = before


def filled(part: Part, tokenizer: VQNSP, args: Namespace, run: Run) -> None:
    """Compute the missing pieces with all processes, unless another run does it: then wait for that."""
    waiting = False
    try:
        while (left := run.on_first(part.missing)) is None:
            if not waiting:
                logger.info("%s: another run computes these codes, this one waits for it.", part.folder)
            waiting = True
            time.sleep(POLL)
            run.interruption.agree()
        if left:
            pieces = [part.pieces[number] for number in left]
            patches = sum((piece.stop - piece.first) * piece.patches for piece in pieces)
            logger.info("Computing the codes of %d patches once: %.1f MB in %s.", patches, patches * 2e-6, part.folder)
            batches = PieceBatches(pieces, args.batch_size, rank=run.rank, processes=run.processes)
            run.prepare(tokenizer)
            compute(part.folder, make_loader(part.dataset, batches, args, run, collate), tokenizer, run)
            if run.patient is not None:
                dist.barrier(run.patient)  # the others may still write
            run.on_first(part.finish)
    finally:
        part.release()


def use_cache(args: Namespace, run: Run, loaders: Loaders, tokenizer: VQNSP, *, weights: str) -> None:
    """Give the data sets of the loaders their codes, out of --cache_codes; what is missing there is computed first.

    tokenizer: on the CPU, where it is again afterwards; weights: their digest. Raises InputError for a folder with
    codes of something else or damaged ones, UsageError for one that cannot be written or a codebook too large.
    """
    size = tokenizer.quantize.codebook_size
    if size > MAX_CODES:
        raise UsageError(
            f"--cache_codes keeps codes as int16, of codebooks of up to {MAX_CODES}; this one has {size}: leave it out"
        )
    key = {
        "format": FORMAT,
        "tokenizer": args.tokenizer_model,
        "weights": weights,
        "codebook": size,
        "precision": str(run.amp_dtype or run.dtype).removeprefix("torch."),
        "device": run.device.type,
    }
    with _said_when_stopped(run):
        for name, loader in (("train", loaders.train), ("val", loaders.val)):
            if loader is not None:
                dataset: PretrainingDataset = loader.dataset  # type: ignore[assignment]
                part = Part(args.cache_codes / name, dataset, key)
                filled(part, tokenizer, args, run)
                dataset.codes = CachedCodes(part.folder, part.pieces)
    tokenizer.to("cpu")
