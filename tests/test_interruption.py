"""Signals become notes, and all processes hear of them at the same call."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from errors import Interrupted
from run_helpers import ROOT, start
from utils import Interruption

AGREEMENT = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch.distributed as dist
from errors import Interrupted
from utils import Interruption
dist.init_process_group("gloo")
rank = dist.get_rank()
heard = Interruption(dist.new_group(backend="gloo"))
calls, wanted = 0, []
with heard.listening():
    try:
        for step in range(20):
            if step == 7 and rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            calls += 1
            wanted.append(heard.sync_signals(save=step == 3 and rank == 0))
    except Interrupted as stop:
        saved = [i for i, want in enumerate(wanted) if want]
        open(f"result.{{rank}}", "w").write(f"{{calls}} {{stop.exit_code}} {{saved}}")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)], ids=lambda v: str(v)
)
def test_a_signal_ends_the_run_at_the_next_call_and_not_before(number: signal.Signals, code: int) -> None:
    heard, done = Interruption(), []
    with heard.listening():
        heard.sync_signals()
        os.kill(os.getpid(), number)
        done.append("the rest of the step")
        with pytest.raises(Interrupted) as stop:
            heard.sync_signals()
    assert done and stop.value.exit_code == code and number.name in str(stop.value)


def test_a_second_ctrl_c_ends_at_once() -> None:
    heard = Interruption()
    with heard.listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_those_of_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with Interruption().listening():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_without_listening_nothing_is_agreed_and_a_signal_acts_as_usual() -> None:
    code = f"import sys, os, signal; sys.path.insert(0, {str(ROOT)!r}); import utils as i; "
    code += "print(i.Interruption().sync_signals(save=True), flush=True); os.kill(os.getpid(), signal.SIGTERM)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n" and done.returncode == -signal.SIGTERM


def test_all_processes_hear_of_a_signal_or_a_wish_to_save_at_the_same_call(tmp_path: Path) -> None:
    script = tmp_path / "agreement.py"
    script.write_text(AGREEMENT.format(root=str(ROOT)))
    start([script], cwd=tmp_path, processes=3)
    results = [(tmp_path / f"result.{rank}").read_text() for rank in range(3)]
    # Step 7 is the eighth call; what it says is heard in the ninth, what step 3 wishes in step 4.
    assert results == ["9 143 [4]"] * 3
