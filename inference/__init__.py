"""A trained model on recordings: `inference.load(checkpoint)`, then `embed`, `predict`, `tokenize`, `reconstruct`."""

from inference.model import VERBS, Model, Result, load

__all__ = ["VERBS", "Model", "Result", "load"]
