"""The linear probe in closed form: ridge regression on features, for many strengths from one decomposition."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Strengths in units of the features' mean eigenvalue; the strongest first, so that it wins a tie.
RATIOS = np.logspace(3, -6, 19)
FOLDS = 5  # of the training subjects. A validation set has often too few: four chose strengths that cost 0.02 of AUROC


def ridge_targets(kind: str, labels: Tensor, classes: int) -> Tensor:
    """Return what to regress on, (n, outputs) float64: 1 for a sample's class and -1 for others, or the targets."""
    if kind == "regression":
        return labels.double()
    return 2 * (labels[:, None] if kind == "binary" else F.one_hot(labels, classes)).double() - 1


def ridge_path(features: Tensor, targets: Tensor, weights: Tensor) -> list[tuple[float, Tensor, Tensor]]:
    """Return strength, W (outputs, width) and b (outputs,) that minimise what scikit-learn's Ridge does.

    That is sum_i w_i |y_i - W x_i - b|^2 + strength |W|^2, for each of the strengths. features: (n, width); targets:
    (n, outputs); weights: (n,). All float64.
    """
    root = weights.sqrt()[:, None]
    mean_x, mean_y = ((weights[:, None] * part).sum(0) / weights.sum() for part in (features, targets))
    x, y = root * (features - mean_x), root * (targets - mean_y)
    is_wide = x.shape[1] > len(x)
    values, vectors = torch.linalg.eigh(x @ x.T if is_wide else x.T @ x)
    inside = vectors.T @ (y if is_wide else x.T @ y)
    unit, found = float(values.mean().clamp(min=torch.finfo(values.dtype).tiny)), []
    for strength in (unit * RATIOS).tolist():
        solved = vectors @ (inside / (values.clamp(min=0) + strength)[:, None])
        weight = (x.T @ solved if is_wide else solved).T
        found.append((strength, weight.cpu(), (mean_y - weight @ mean_x).cpu()))
    return found


def left_out(features: Tensor, targets: Tensor, weights: Tensor, groups: Tensor) -> Tensor:
    """Return each sample's outputs, (strengths, n, outputs), of the solutions without a fifth of the groups.

    groups: (n,), number of each sample's subject: the fifth g of five that is left out has those with number % 5 == g.
    The rest as for `ridge_path`.
    """
    outputs = targets.new_empty(len(RATIOS), *targets.shape)
    for fold in (groups % FOLDS).unique().tolist():
        is_out = groups % FOLDS == fold
        solved = ridge_path(*(part[~is_out] for part in (features, targets, weights)))
        for own, (_, weight, bias) in zip(outputs, solved, strict=True):
            own[is_out] = features[is_out] @ weight.to(features).T + bias.to(features)
    return outputs
