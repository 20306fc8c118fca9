#!/usr/bin/env bash
# A worker of pebble's pool that exits with code 0 is noticed by the time limit only.
# Guess: a worker that ends in the middle of a call fails that call with ProcessExpired at once, whatever its exit code.
# Seen with pebble 5.2.3, Python 3.11, start methods forkserver and spawn: exit code 3 fails the call within a second
# with ProcessExpired; exit code 0 fails it with TimeoutError after the whole limit, and without a limit never.
# A C library that calls exit(0) on bad input does the same, so a pool of readers needs a time limit for every call.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pebble==5.2.3
cat > show.py <<'PY'
import multiprocessing
import os
import time
from concurrent.futures import TimeoutError
from importlib.metadata import version

from pebble import ProcessExpired, ProcessPool

LIMIT = 8  # seconds

if __name__ == "__main__":
    for method in ("forkserver", "spawn"):
        for code, expected in ((3, ProcessExpired), (0, TimeoutError)):
            with ProcessPool(1, context=multiprocessing.get_context(method)) as pool:
                pool.schedule(os.getpid).result()  # the process is there
                began = time.monotonic()
                try:
                    pool.schedule(os._exit, (code,), timeout=LIMIT).result()
                except (ProcessExpired, TimeoutError) as error:
                    seconds = time.monotonic() - began
                    print(f"pebble {version('pebble')}, {method}: exit code {code}: {type(error).__name__}, {seconds:.1f} s")
                    assert isinstance(error, expected) and (seconds > LIMIT / 2) == (code == 0)
                assert pool.schedule(os.getpid).result(), "the pool goes on"
PY
venv/bin/python show.py
