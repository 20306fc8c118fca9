"""Loading processes inherit nothing of a run but what they are given, and end with it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from eeg_data.loading import context
from run_helpers import ROOT
from waiting import status, wait_until_gone

held = threading.Lock()  # what a thread of the run holds while loading processes start


class Parents(Dataset):
    """The parent of the process that reads, once it has the lock."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        with held:
            return os.getppid()


def test_a_lock_that_a_thread_of_the_run_holds_does_not_stop_a_loading_process() -> None:
    with held:
        (found,) = list(DataLoader(Parents(), batch_size=2, num_workers=1, multiprocessing_context=context()))
    assert set(found.tolist()).isdisjoint({os.getpid()})


CHOSEN = """
import multiprocessing, sys
sys.path.insert(0, {root!r})
from eeg_data.loading import context
multiprocessing.set_start_method("spawn")
assert context().get_start_method() == "spawn"
assert multiprocessing.forkserver._forkserver._forkserver_pid is None
"""


def test_spawning_stays_where_it_was_chosen() -> None:
    assert subprocess.run([sys.executable, "-c", CHOSEN.format(root=str(ROOT))], check=False).returncode == 0


SERVER = """
import multiprocessing.forkserver, signal, sys
sys.path.insert(0, {root!r})
from eeg_data.loading import context
def wait(end):
    end.recv()
if __name__ == "__main__":
    made = context()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    ours, theirs = made.Pipe()
    process = made.Process(target=wait, args=(theirs,))
    process.start()
    print(multiprocessing.forkserver._forkserver._forkserver_pid, flush=True)
    sys.stdin.readline()
    ours.send("end")
    process.join()
    print(process.exitcode)
"""


KILLED = """
import multiprocessing.forkserver, os, sys, time
sys.path.insert(0, {root!r})
from eeg_data.loading import begin_loading, context
def load(run, end):
    begin_loading(run)
    end.send(os.getpid())
    time.sleep(600)
if __name__ == "__main__":
    made = context()
    ours, theirs = made.Pipe()
    made.Process(target=load, args=(os.getpid(), theirs)).start()
    print(ours.recv(), multiprocessing.forkserver._forkserver._forkserver_pid, flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_of_a_run_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(KILLED.format(root=str(ROOT)))
    with subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        loading, server = map(int, run.stdout.readline().split())
        run.kill()
    wait_until_gone(loading)
    wait_until_gone(server)


def test_signals_to_the_whole_job_leave_the_server_alone_and_it_ends_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SERVER.format(root=str(ROOT)))
    command = [sys.executable, tmp_path / "script.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        server = int(run.stdout.readline())
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(server, number)
        assert run.communicate("go on\n", timeout=60)[0] == "0\n"
    wait_until_gone(server)


LOADING = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from eeg_data.loading import begin_loading
child = os.fork()
if child == 0:
    begin_loading(os.getppid())
    os.write(1, b"ready\\n")
    time.sleep(60)
    os._exit(1)
print(child, flush=True)
sys.stdin.readline()
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_only_the_process_that_started_it_ends_a_loading_process_with_sigterm() -> None:
    command = [sys.executable, "-c", LOADING.format(root=str(ROOT))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        first, second = parent.stdout.readline(), parent.stdout.readline()
        child = int(first if second == "ready\n" else second)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            os.kill(child, number)
        time.sleep(0.3)
        assert status(child)["State"][0] != "Z", "it ended"
        assert parent.communicate("now\n", timeout=60)[0] == "0\n"
