#!/usr/bin/env bash
# safetensors writes its metadata in another order each time.
# Guess: saving the same tensors with the same metadata gives the same bytes, as it does without metadata.
# Seen with safetensors 0.8.0, Python 3.11: 12 calls in one process give several different files (6 entries have 720
# orders); one entry, or none, gives one file. PYTHONHASHSEED makes no difference: the order is that of a Rust HashMap.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cat > show.py <<'PY'
import numpy as np
import safetensors
from safetensors.numpy import save


def kinds(entries: str) -> int:
    """Return how many different files 12 calls write."""
    metadata = {name: name for name in entries} or None
    return len({save({"weight": np.zeros(3, np.float32)}, metadata=metadata) for _ in range(12)})


print(f"safetensors {safetensors.__version__}: different files from 12 equal calls, by entries of the metadata:")
for entries in ("", "a", "abcdef"):
    print(len(entries), kinds(entries))
assert kinds("") == kinds("a") == 1 and kinds("abcdef") > 1
PY
PYTHONHASHSEED=0 venv/bin/python show.py
