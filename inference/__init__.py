"""A trained model on recordings: `inference.load(checkpoint)`, then `embed`, `predict`, `tokenize`, `reconstruct`."""

from inference.model import BATCH, POOLS, VERBS, Model, Result, load

__all__ = ["BATCH", "POOLS", "VERBS", "Model", "Result", "load"]
