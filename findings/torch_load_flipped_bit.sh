#!/usr/bin/env bash
# torch.load does not check the CRC-32 of its own archive.
# Guess: a checkpoint is a zip archive with a CRC-32 for every tensor, so torch.load refuses a file with a flipped bit.
# Seen with torch 2.13.0 (and 2.11.0), Python 3.11: torch.load returns 372.0 where 500.0 was saved, with mmap=True as
# without, and raises nothing. Python's zipfile names the damaged member. A truncated file is refused.
# Source: the vendored miniz is compiled with MINIZ_DISABLE_ZIP_READER_CRC32_CHECKS (pytorch, caffe2/serialize).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > show.py <<'PY'
import struct
import zipfile

import torch

torch.save({"weight": torch.arange(1000.0)}, "whole.pth")
content = bytearray(open("whole.pth", "rb").read())
content[content.index(struct.pack("<f", 500.0)) + 2] ^= 0x40  # one bit of the value 500
open("flipped.pth", "wb").write(content)
open("short.pth", "wb").write(content[:-100])
for mmap in (False, True):
    value = torch.load("flipped.pth", weights_only=True, mmap=mmap)["weight"][500].item()
    print(f"torch {torch.__version__}, mmap={mmap}: read {value} where 500.0 was saved")
    assert value == 372.0
damaged = zipfile.ZipFile("flipped.pth").testzip()
print("zipfile.testzip:", damaged)
assert damaged is not None and damaged.endswith("data/0")
try:
    torch.load("short.pth", weights_only=True)
except (OSError, RuntimeError) as error:
    print("truncated:", type(error).__name__)
else:
    raise SystemExit("a truncated file was read")
PY
venv/bin/python show.py
