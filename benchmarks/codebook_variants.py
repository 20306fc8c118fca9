"""What keeps a codebook alive: the variants that `codebook.py` compares, as small changes of the product's quantiser.

A variant is a start of the rows, a quantiser (gradient and loss), an upkeep that runs after every step, and a width.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from norm_ema_quantizer import (
    CodebookRevival,
    NormEMAVectorQuantizer,
    full_precision,
    kmeans,
    l2_normalize,
    sample_rows,
)

SMALLEST_SHARE = 1e-5  # of a code, in the logarithm of an entropy: that of the published tokenizers
Upkeep = Callable[[int, Tensor, Tensor], None]  # (step, counts (K,), the step's vectors (n, width)) after every step


def rotate(vectors: Tensor, rows: Tensor) -> Tensor:
    """Turn each vector onto its row; the gradient turns back with it. Both (..., width), of unit length.

    The rotation is a constant: R = I - 2 w w' + 2 row vector', w = normalize(vector + row). Source: Fifty et al. 2024,
    "Restructuring vector quantization with the rotation trick", section 4.2 (arXiv 2410.06424).
    """
    fixed = vectors.detach()
    middle = l2_normalize(fixed + rows)
    mirrored = vectors - 2 * (vectors * middle).sum(-1, keepdim=True) * middle
    return mirrored + 2 * (vectors * fixed).sum(-1, keepdim=True) * rows


def entropy_term(vectors: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Mean entropy of each vector's soft choice of a row, less the entropy of the mean choice: at least -ln K.

    (n, width), (K, width) -> (). The choice is a softmax of -squared distance / temperature. Source: MaskGIT's
    tokenizer, MAGVIT-2 (Yu et al. 2023, equation 5).
    """
    logits = (2 * vectors @ rows.t() - 2) / temperature
    log_choice = logits.log_softmax(1)
    choice = log_choice.exp()
    mean = choice.mean(0)
    # Logarithms are kept finite: a choice of zero would make the gradient NaN.
    return (mean * mean.clamp(min=SMALLEST_SHARE).log()).sum() - (choice * log_choice).sum(1).mean()


def orthogonal_rows(codebook_size: int, width: int, generator: torch.Generator) -> Tensor:
    """Rows of random orthogonal matrices, one under the other. Returns (codebook_size, width), unit length."""
    blocks = [
        nn.init.orthogonal_(torch.empty(width, width), generator=generator) for _ in range(-(-codebook_size // width))
    ]
    return torch.cat(blocks)[:codebook_size]


class RotationTrick(NormEMAVectorQuantizer):
    """The decoder's gradient reaches the encoder turned by the angle between vector and row, not straight through."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the product's, with another gradient."""
        quantized, codes, loss = super().forward(z)
        with full_precision(z.device):
            return rotate(l2_normalize(z.to(quantized.dtype)), quantized.detach()), codes, loss


class EntropyTerm(NormEMAVectorQuantizer):
    """Adds the entropy term to the loss in training."""

    WEIGHT, TEMPERATURE = 0.1, 0.01  # of the published tokenizers

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the product's, with another loss."""
        quantized, codes, loss = super().forward(z)
        if self.training:
            with full_precision(z.device):
                vectors = l2_normalize(z.to(quantized.dtype)).flatten(0, -2)
                loss = loss + self.WEIGHT * entropy_term(vectors, self.embedding.weight.clone(), self.TEMPERATURE)
        return quantized, codes, loss


class WeakEntropyTerm(EntropyTerm):
    """With a hundredth of the weight, so that it is of the size of the quantiser's own loss."""

    WEIGHT = 0.001


class Unquantized(NormEMAVectorQuantizer):
    """The decoder gets the vectors themselves: what is left to gain by any codebook of this width."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the product's, but nothing is quantised."""
        quantized, codes, loss = super().forward(z)
        return l2_normalize(z.to(quantized.dtype)), codes, 0 * loss


class Expiry:
    """Replace, after every step, each row whose moving average of vectors a step is below a threshold.

    The rule `threshold_ema_dead_code` of vector-quantize-pytorch: rows become random vectors of the step, their average
    is set to the threshold. The last steps are no exception.
    """

    DECAY = 0.8  # of this average, the library's default; that of the rows is the quantiser's

    def __init__(self, quantizer: NormEMAVectorQuantizer, *, threshold: float, seed: int) -> None:
        """threshold in vectors a step."""
        self.quantizer, self.threshold = quantizer, threshold
        self.size = torch.ones(quantizer.codebook_size)
        self.generator = torch.Generator().manual_seed(seed)
        self.replaced = 0

    @torch.no_grad()
    def __call__(self, step: int, counts: Tensor, vectors: Tensor) -> None:
        """After a step."""
        self.size.lerp_(counts.to(self.size.dtype), 1 - self.DECAY)
        index = (self.size < self.threshold).nonzero().flatten()
        # With more rows than vectors some wait, so that no two become the same.
        index = index[torch.randperm(len(index), generator=self.generator)[: len(vectors)]]
        self.quantizer.embedding.weight[index] = sample_rows(vectors, len(index), self.generator)
        self.size[index] = self.threshold
        self.replaced += len(index)


class ShareExpiry(Expiry):
    """The same with the threshold as a share of what a row gets where all get the same: a tenth."""

    SHARE = 0.1

    @torch.no_grad()
    def __call__(self, step: int, counts: Tensor, vectors: Tensor) -> None:
        """After a step."""
        self.threshold = self.SHARE * float(counts.sum()) / len(counts)
        if step == 0:
            self.size.fill_(float(counts.sum()) / len(counts))
        super().__call__(step, counts, vectors)


class KMeansRestart:
    """Set all rows by k-means of the last steps' vectors, ten times in a training but not in its last tenth."""

    TIMES = 10
    VECTORS_PER_ROW = 4  # kept for k-means, the newest

    def __init__(self, quantizer: NormEMAVectorQuantizer, *, total_steps: int, seed: int) -> None:
        """total_steps of the whole training."""
        self.quantizer = quantizer
        self.every = max(1, total_steps // self.TIMES)
        self.last_step = total_steps - max(1, total_steps // 10)
        self.kept: deque[Tensor] = deque()
        self.generator = torch.Generator().manual_seed(seed)
        self.restarts = 0

    @torch.no_grad()
    def __call__(self, step: int, counts: Tensor, vectors: Tensor) -> None:
        """After a step."""
        self.kept.append(vectors)
        while sum(map(len, self.kept)) - len(self.kept[0]) >= self.VECTORS_PER_ROW * self.quantizer.codebook_size:
            self.kept.popleft()
        if (step + 1) % self.every or step >= self.last_step:
            return
        centres = kmeans(torch.cat(tuple(self.kept)), self.quantizer.codebook_size, generator=self.generator)
        self.quantizer.embedding.weight.copy_(centres)
        self.restarts += 1


def both(first: Upkeep, second: Upkeep) -> Upkeep:
    """One upkeep after the other."""

    def run(step: int, counts: Tensor, vectors: Tensor) -> None:
        first(step, counts, vectors)
        second(step, counts, vectors)

    return run


def no_upkeep(quantizer: NormEMAVectorQuantizer, steps: int, seed: int) -> Upkeep:
    """Nothing happens to rows beside their moving average."""
    return lambda step, counts, vectors: None


def revival(quantizer: NormEMAVectorQuantizer, steps: int, seed: int) -> Upkeep:
    """The product's."""
    return CodebookRevival(quantizer, total_steps=steps, seed=seed)


def expiry(quantizer: NormEMAVectorQuantizer, steps: int, seed: int) -> Upkeep:
    """With the threshold that vector-quantize-pytorch's documentation uses."""
    return Expiry(quantizer, threshold=2, seed=seed)


def share_expiry(quantizer: NormEMAVectorQuantizer, steps: int, seed: int) -> Upkeep:
    """With a threshold that fits the batch."""
    return ShareExpiry(quantizer, threshold=0, seed=seed)


def kmeans_restart(quantizer: NormEMAVectorQuantizer, steps: int, seed: int) -> Upkeep:
    """K-means now and then."""
    return KMeansRestart(quantizer, total_steps=steps, seed=seed)


def kmeans_and_revival(quantizer: NormEMAVectorQuantizer, steps: int, seed: int) -> Upkeep:
    """K-means now and then, idle rows re-seeded between."""
    return both(kmeans_restart(quantizer, steps, seed), revival(quantizer, steps, seed))


@dataclass(frozen=True)
class Variant:
    """One way to keep a codebook."""

    upkeep: Callable[[NormEMAVectorQuantizer, int, int], Upkeep] = no_upkeep  # (quantizer, total steps, seed)
    quantizer: type[NormEMAVectorQuantizer] = NormEMAVectorQuantizer
    start: str = "kmeans"  # or random, orthogonal
    width: int = 64


VARIANTS = {
    "published": Variant(),
    "revival": Variant(revival),
    "random": Variant(start="random"),
    "random+revival": Variant(revival, start="random"),
    "orthogonal": Variant(start="orthogonal"),
    "orthogonal+revival": Variant(revival, start="orthogonal"),
    "kmeans_restart": Variant(kmeans_restart),
    "kmeans_restart+revival": Variant(kmeans_and_revival),
    "expire_2": Variant(expiry),
    "expire_share": Variant(share_expiry),
    "rotation": Variant(quantizer=RotationTrick),
    "rotation+revival": Variant(revival, RotationTrick),
    "rotation+expire_share": Variant(share_expiry, RotationTrick),
    "entropy": Variant(quantizer=EntropyTerm),
    "entropy+revival": Variant(revival, EntropyTerm),
    "weak_entropy": Variant(quantizer=WeakEntropyTerm),
    "weak_entropy+revival": Variant(revival, WeakEntropyTerm),
    "width_8": Variant(width=8),
    "width_8+revival": Variant(revival, width=8),
    "width_16+revival": Variant(revival, width=16),
    "width_32+revival": Variant(revival, width=32),
    "unquantized": Variant(quantizer=Unquantized),
}


def prepare(quantizer: NormEMAVectorQuantizer, variant: Variant, seed: int) -> NormEMAVectorQuantizer:
    """The variant's quantiser with the rows of this one, which may be of the product's class."""
    made = variant.quantizer(
        quantizer.codebook_size,
        quantizer.embedding.weight.shape[1],
        decay=quantizer.decay,
        beta=quantizer.beta,
        kmeans_init=variant.start == "kmeans",
    )
    generator = torch.Generator().manual_seed(seed)
    rows: Tensor = quantizer.embedding.weight
    if variant.start == "orthogonal":
        rows = orthogonal_rows(len(rows), rows.shape[1], generator)
    made.embedding.weight.copy_(rows)
    return made
