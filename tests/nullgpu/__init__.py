"""A GPU without a GPU: the CUDA build of torch runs over a stand-in for driver, runtime, cuBLAS, cuFFT, cuDNN and NCCL.

Everything above these is the real thing: operators with their checks of type and device, the choice of attention
kernels, the caching allocator, streams, autograd's threads, DDP, ProcessGroupNCCL, page-locked memory, torch.compile
with Triton. Device memory is host memory, kernels do nothing and are counted, NCCL's operations happen, in shared
memory. `arithmetic` gives real numbers: it repeats each operation on the CPU, in the same memory, and those of a CUDA
graph whenever it is launched. While a stream is captured, waits and work on another stream are errors.

What it cannot show: what a kernel computes, how long it takes, and the order of streams (but torch's own sanitizer of
streams works). Needs Linux, gcc, nm and a build of torch for CUDA. Settings, in the environment: NULLGPU_DEVICES,
NULLGPU_CC (compute capability, 90), NULLGPU_GB (memory of each GPU), NULLGPU_FAULT (a CUDA error of all GPUs).
"""

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent
USERS = ("libtorch_cuda.so", "libtorch_python.so", "libc10_cuda.so", "libtorch_cuda_linalg.so")
REPLACED = r"(cublas|cublasLt|cufft|cudnn|nccl|cusparse|curand|cusparseLt|cuFile|cusolver|(__)?cuda)[A-Z]\w+"
MOVES_DATA = r"nccl(Reduce|Send|Recv|Gather|Scatter|AlltoAll)"  # not here, so an error


def lacking() -> str:
    """Return why there can be no stand-in on this machine; an empty text if there can."""
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    return ", ".join(f"no {tool}" for tool in ("gcc", "nm") if shutil.which(tool) is None)


def environment(folder: Path) -> dict[str, str]:
    """Build the stand-in in a folder, unless it is there; return the variables of a process that gets it."""
    major = str(torch.version.cuda).split(".")[0]
    own = [Path(__file__), *sorted(HERE.glob("*.[ch]"))]
    content = b"".join(path.read_bytes() for path in own) + torch.__version__.encode()
    folder = folder / f"nullgpu-{hashlib.sha256(content).hexdigest()[:12]}"
    names = ["libnullgpu.so", f"libnvrtc.so.{major}", "libcuda.so.1"]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            part = Path(temporary, folder.name)
            part.mkdir()
            build(part, names)
            try:
                part.rename(folder)
            except OSError:
                if not folder.is_dir():  # another process was faster
                    raise
    return {
        "LD_PRELOAD": " ".join(str(folder / name) for name in names),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        # What is compiled here must not be found by a run on a real GPU.
        "USE_PYTORCH_KERNEL_CACHE": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }


def build(folder: Path, names: Sequence[str]) -> None:
    """Compile the libraries. names: of the stand-in itself, of the compiler of kernels, and of the driver."""
    sources = [HERE / f"{name}.c" for name in ("runtime", "streams", "libraries", "nccl")]
    compile_library(folder / names[0], *sources)
    defined = symbols(folder / names[0], "--defined-only")
    used = set().union(*(symbols(TORCH / "lib" / name, "--undefined-only") for name in USERS))
    write_rest(folder / "rest.c", sorted(name for name in used - defined if re.fullmatch(REPLACED, name)))
    compile_library(folder / names[0], *sources, folder / "rest.c")
    compile_library(folder / names[1], HERE / "nvrtc.c")
    compile_library(folder / names[2], HERE / "driver.c")
    (folder / "libcuda.so").symlink_to(names[2])


def compile_library(target: Path, *sources: Path) -> None:
    """Compile C into a shared library, with the CUDA headers that come with torch and Triton."""
    site = TORCH.parent
    headers = [*site.glob("nvidia/cu*/include"), site / "nvidia/cuda_runtime/include"]
    include = [f"-I{path}" for path in (HERE, *headers, site / "triton/backends/nvidia/include")]
    options = ["-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{target.name}", "-o", target]
    subprocess.run(["gcc", *options, *include, *sources, "-ldl", "-lpthread", "-lrt"], check=True)


def symbols(library: Path, kind: str) -> set[str]:
    """Return the names of a library's symbols, without versions."""
    lines = subprocess.run(["nm", "-D", kind, library], capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line.strip()}


def write_rest(path: Path, names: list[str]) -> None:
    """Write a function for each name that the sources do not define: counted, and without effect."""
    lines = ['#include "nullgpu.h"']
    for name in names:  # by another name in C, because headers declare some of them
        code = 5 if re.match(MOVES_DATA, name) else 0
        lines.append(f'API long rest_{name}(void) __asm__("{name}");')
        lines.append(f"API long rest_{name}(void) {{ return note(UNKNOWN), {code}; }}")
    path.write_text("\n".join(lines) + "\n")
