"""Devices and the processes that share them: which GPU is used, whether it can be, who of the others is still there.

`Graphs` has a GPU repeat work without the host.
"""

import logging
import os
import re
import shutil
import socket
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map

from errors import PeerLost, UsageError, one_line

logger = logging.getLogger(__name__)

NO_GPU = ("Found no NVIDIA driver", "No CUDA GPUs are available", "not compiled with CUDA")  # as torch says it
ON_THE_CPU = "or train on the CPU with --device cpu"
COMPILING_PROCESSES = 4  # of each process; torch would start 32, with 8 GPUs 256 on a machine
LOST_SECONDS = 3  # in which a process can end by itself, with a better message, after another one died
MOST_GRAPHS = 16  # shapes of a batch whose work is recorded
_last_groups: list[Any] = []


def find_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device that --device names; auto: a GPU if the machine has one, otherwise the CPU.

    Raises UsageError if there is no such device, or if torch cannot use it.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name} is not supported; allowed: cuda, cuda:<index>, cpu, auto")
    count = 0 if name == "cpu" else _count_gpus(name)
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    index = int(name.partition(":")[2] or local_rank)
    if ":" in name and "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(f"--device {name}: several processes cannot share one GPU; use --device cuda")
    if index >= count:
        way_out = "use --device cpu, or fewer processes (--nproc_per_node)"
        raise UsageError(f"--device {name}: GPU {index} is not there ({count} found); {way_out}")
    _check_kernels(name, index)
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def _count_gpus(name: str) -> int:
    """Return how many GPUs there are. Raises UsageError, with torch's reason, if there are some but none is usable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of GPUs without kernels: `_check_kernels` says it in one line
            torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        if any(text in str(error) for text in NO_GPU):
            return 0
        way_out = f"change the driver, or torch (docs/training.md, 'Which torch for which driver'), {ON_THE_CPU}"
        message = f"--device {name}: the GPUs of this machine cannot be used ({one_line(error)}): {way_out}"
        raise UsageError(message) from error
    return torch.cuda.device_count()


def _check_kernels(name: str, index: int) -> None:
    """Raise UsageError if this build of torch has no kernels that run on a GPU."""
    major, minor = torch.cuda.get_device_capability(index)
    built = torch.cuda.get_arch_list()  # sm_86: machine code, also for sm_89; compute_90: text for that and any later
    kernels = [(kind, divmod(int(n), 10)) for kind, n in re.findall(r"(sm|compute)_(\d+)", " ".join(built))]
    runs = [v <= (major, minor) and (kind == "compute" or v[0] == major) for kind, v in kernels]
    if kernels and not any(runs):
        gpu = f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}; it has {', '.join(built)}"
        way_out = "install another build of torch (docs/training.md, 'Which torch for which driver')"
        lacking = f"torch {torch.__version__} has no kernels for GPU {index} ({gpu})"
        raise UsageError(f"--device {name}: {lacking}: {way_out}, {ON_THE_CPU}")


def use_compiler(wanted: bool | None, device: torch.device) -> bool:
    """Return whether blocks are compiled; None: on GPUs, if what Triton needs is there. Bounds torch's processes."""
    if wanted is None and device.type == "cuda":
        lacking = _missing_for_triton()
        if lacking:
            logger.warning(
                "Blocks are not compiled, so steps take longer: %s not found (--no_compile: no warning)", lacking
            )
        wanted = not lacking
    if wanted and "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        import torch._inductor.config as inductor  # takes a second

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        inductor.compile_threads = max(1, min(COMPILING_PROCESSES, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    return bool(wanted)


def _missing_for_triton() -> str:
    """Return what Triton builds its launchers with and this machine lacks."""
    if not any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"])):
        return "a C compiler (gcc, or the variable CC)"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return "" if header.is_file() else f"{header} (a package named python3-dev or like it)"


def init_groups(device: torch.device) -> Any:
    """Make the process group. Returns a second group on CPUs, None for one process.

    Raises UsageError, on all ranks, if some work on GPUs and some on CPUs.
    """
    nccl = device.type == "cuda" and dist.is_nccl_available()
    backend, device_id = ("nccl", device) if nccl else ("gloo", None)
    rank, processes = 0, 1
    store: dist.Store = dist.HashStore()
    if "RANK" in os.environ:
        store, rank, processes = next(iter(dist.rendezvous("env://")))
        if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
            # torchrun keeps its store, with the addresses of processes that ended, when it starts them again.
            # (With several machines their counts may differ: docs/training.md turns the keeping off there.)
            store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    _check_devices(store, device.type, rank, processes)
    dist.init_process_group(backend, store=store, rank=rank, world_size=processes, device_id=device_id)
    # Made at once: later a process that failed before would be waited for, without a connection that could break.
    cpu_group = dist.new_group(backend="gloo") if processes > 1 else None
    # Kept until the next run: a model that frees its group right after an exchange can wait for Gloo's thread, which
    # waits for Python, for ever.
    _last_groups[:] = [dist.group.WORLD, cpu_group]
    return cpu_group


def _check_devices(store: dist.Store, kind: str, rank: int, processes: int) -> None:
    """Raise UsageError, on all ranks, if some work on GPUs and some on CPUs: their groups would wait for each other."""
    store.set(f"device {rank}", f"{kind} on {socket.gethostname()}")
    devices = [device.decode() for device in store.multi_get([f"device {number}" for number in range(processes)])]
    for number, other in enumerate(devices):
        if other.split()[0] != devices[0].split()[0]:
            way_out = "see why the GPU is not found there (nvidia-smi), or give all the same --device"
            raise UsageError(f"process {number} works with {other}, process 0 with {devices[0]}: {way_out}")


class PeerWatch:
    """Ends this process soon after another one died, even if it waits for a GPU that waits for the dead one.

    NCCL does not notice such a death, and while a process waits for a GPU Python handles no signals. A thread waits
    for messages that come when all processes are through, and notices the connection that breaks before.
    """

    def __init__(self) -> None:
        """Every process must make one."""
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=3650))
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        """Rank 0 waits for all others, the others wait for rank 0, which sees every death and hands it on by ending."""
        message, processes = torch.zeros(1), dist.get_world_size()
        try:
            if dist.get_rank() == 0:
                dist.gather(message, [torch.zeros(1) for _ in range(processes)], group=self._group)
                for other in range(1, processes):
                    dist.send(message, other, group=self._group)
            else:
                dist.recv(message, 0, group=self._group)
        except RuntimeError:  # Gloo's, of a connection
            time.sleep(LOST_SECONDS)
            print("error: ended because another process of the run did", file=sys.stderr, flush=True)
            os._exit(PeerLost.exit_code)

    def leave(self) -> None:
        """Return when all processes called this."""
        if dist.get_rank() > 0:
            dist.gather(torch.zeros(1), group=self._group)
        self._thread.join()


class Graphs:
    """A function of tensors whose work on a GPU is recorded as a CUDA graph, one for each shape of its arguments.

    The host then launches one graph in place of each kernel. The first call with a shape works as without graphs, the
    second one records. Shapes after the first MOST_GRAPHS are not recorded. What the function reads besides its
    arguments must stay in its place in memory, and the current stream must be the one on which it always works.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """function: returns tensors, in tuples or dicts; it may change tensors and must not ask the GPU anything."""
        self.function = function
        self._recorded: dict[Any, tuple[torch.cuda.CUDAGraph, list[Tensor], Any] | None] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the function returns. Its tensors are the caller's: no later call changes them."""
        shapes = tuple((x.shape, x.dtype) for x in inputs)
        if shapes not in self._recorded:
            if len(self._recorded) < MOST_GRAPHS:
                # All graphs are recorded again, because a call without one cannot use their memory.
                self._recorded = dict.fromkeys([*self._recorded, shapes])
                self._pool = torch.cuda.graph_pool_handle()  # of their memory, shared: none runs while another does
            return self.function(*inputs)
        graph, own, outputs = self._recorded[shapes] = self._recorded[shapes] or self._record(inputs)
        for place, given in zip(own, inputs, strict=True):
            place.copy_(given)
        graph.replay()
        return tree_map(Tensor.clone, outputs)

    def _record(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        graph, own = torch.cuda.CUDAGraph(), [x.clone() for x in inputs]
        # Other threads go on: of the loader, of NCCL.
        options: Any = {"stream": torch.cuda.current_stream(), "capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, pool=self._pool, **options):
            outputs = self.function(*own)
        return graph, own, outputs
