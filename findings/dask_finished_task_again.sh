#!/usr/bin/env bash
# A task whose result the client has in hand runs again when the worker that computed it dies.
# Guess: a call that was delivered is done; only calls under way are repeated.
# Seen with distributed 2026.8.0, Python 3.11: as long as the client holds the future, the scheduler keeps the result on
# the worker, and a worker that dies makes it run the call again elsewhere, with all that it writes. Once the future is
# dropped, nothing is repeated. This holds behind `Client.get_executor()` as well, whose futures look like the standard
# library's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check distributed==2026.8.0
cat > show.py <<'PY'
import os
import signal
import time

import distributed


def call(path):
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid()


def runs(path, hold):
    """Return how often the call ran, although its result was delivered before its worker died."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        future = client.get_executor(pure=False).submit(call, path)
        worker = future.result()
        if not hold:
            del future
            time.sleep(1)
        os.kill(worker, signal.SIGKILL)
        for _ in range(20):
            time.sleep(0.5)
            with open(path) as file:
                lines = file.read().splitlines()
            if len(lines) > 1:
                break
        return len(lines)


if __name__ == "__main__":
    seen = {"held": runs("held.txt", True), "dropped": runs("dropped.txt", False)}
    print(f"distributed {distributed.__version__}: runs of a delivered call whose future was {seen}")
    assert seen == {"held": 2, "dropped": 1}, seen
PY
venv/bin/python show.py
