"""Real numbers over the stand-in: each operation on CUDA tensors is repeated by the CPU, in the same memory."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

NOT_OURS = ("c10d::", "_c10d", "profiler::", "inductor::", "prim::")
# These move no numbers.
PLAIN = {
    "detach",
    "alias",
    "_unsafe_view",
    "set_",
    "resize_",
    "record_stream",
    "is_pinned",
    "_pin_memory",
    "pin_memory",
}
# The sizes of these operations' results are numbers on the GPU, so the host waits for them.
SIZED = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
INDEXED = {"index", "index_put_", "_index_put_impl_", "index_put"}  # so are these with a boolean mask


def is_cuda(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == "cuda"


def on_cpu(x: Any) -> Any:
    """Return a CPU tensor in the memory of a CUDA one: the stand-in's memory is the host's."""
    if isinstance(x, torch.Generator):
        return None
    if isinstance(x, torch.device):
        return torch.device("cpu")
    if not is_cuda(x):
        return x
    storage = x.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
    memory = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    out = torch.empty(0, dtype=x.dtype).set_(memory, x.storage_offset(), x.shape, x.stride())
    return out.conj() if x.is_conj() else out


def write(target: Tensor, value: Tensor) -> Tensor:
    """Write the CPU's value into a CUDA tensor, into a new one if the shape is another; return it."""
    if target.shape != value.shape:
        target = torch.empty_strided(value.shape, value.stride(), dtype=target.dtype, device=target.device)
    if target.numel():
        on_cpu(target).copy_(value)
    return target


def attention(name: str, results: Any, args: Sequence[Any], scale: float | None) -> Any:
    """Compute what the fused kernels do, which CPUs lack (without dropout and causal mask)."""
    if name.endswith("_backward"):
        grad, q, k, v = (x.float() for x in args[:4])
        scale = scale or 1 / math.sqrt(q.shape[-1])
        weights = (q @ k.mT * scale).softmax(-1)
        slope = grad @ v.mT
        scores = weights * (slope - (slope * weights).sum(-1, keepdim=True)) * scale
        for target, value in zip(results, (scores @ k, scores.mT @ q, weights.mT @ grad), strict=False):
            write(target, value)
        return results
    q, k, v = (x.float() for x in args[:3])
    scores = q @ k.mT * (scale or 1 / math.sqrt(q.shape[-1]))
    if len(args) > 3 and isinstance(args[3], Tensor):
        scores = scores + args[3].float()
    total = scores.logsumexp(-1)
    write(results[0], (scores - total[..., None]).exp() @ v)
    if results[1].numel():
        on_cpu(results[1]).flatten(2)[..., : total.shape[-1]].copy_(total)
    return results


class Arithmetic(TorchDispatchMode):
    """While it is entered, `.item()`, losses and checkpoints of CUDA tensors are those of the CPU's kernels."""

    captured: list[Callable[[], Any]]  # of the latest graph
    seed = 0  # of operations that draw: the host's generator stays as it is, as with a GPU

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        flat, form = tree_flatten((args, kwargs))
        own = [x for x in flat if is_cuda(x)]
        creates = any(isinstance(x, torch.device) and x.type == "cuda" for x in flat)
        if not (own or creates) or func._schema.name.startswith(NOT_OURS):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        cpu_args, cpu_kwargs = tree_unflatten([on_cpu(x) for x in flat], form)
        if name == "_local_scalar_dense":
            func(*args, **kwargs)  # waits, as a real one does
            return cpu_args[0].item()
        masks = [x for x in (args[1] or ()) if isinstance(x, Tensor)] if name in INDEXED else []
        if name in SIZED or any(mask.dtype in (torch.bool, torch.uint8) for mask in masks):
            torch.cuda.current_stream().synchronize()
            values = func(*cpu_args, **cpu_kwargs)
            empty = torch.empty(0, device=own[0].device)
            return args[0] if name.endswith("_") else tree_map(lambda v: write(empty.to(v.dtype), v), values)
        real = func(*args, **kwargs)
        if name == "copy_":
            target, value = cpu_args[:2]
            self.now_or_later(lambda: target.copy_(value))
        elif name.startswith("_scaled_dot_product_"):
            results = [on_cpu(x) for x in real]
            self.now_or_later(lambda: attention(name, results, cpu_args, kwargs.get("scale")))
        elif not (func.is_view or name in PLAIN) or (name not in ("set_", "resize_") and is_copy(real, own)):
            return self.repeat(name, func, real, flat, lambda: func(*cpu_args, **cpu_kwargs))
        return real

    def now_or_later(self, work: Callable[[], Any]) -> None:
        """Do what the CPU does of an operation, or keep it for the graph that is captured."""
        if torch.cuda.is_current_stream_capturing():
            self.captured.append(work)
        else:
            work()

    def repeat(self, name: str, func: Any, real: Any, flat: Sequence[Any], compute: Callable[[], Any]) -> Any:
        """Write what the CPU computes into the results of an operation; `real`, in their form."""
        results, form = tree_flatten(real)
        given = [any(result is x for x in flat) for result in results]  # written in place, by the CPU too
        if torch.cuda.is_current_stream_capturing():
            targets = [None if own else on_cpu(result) for result, own in zip(results, given, strict=True)]

            def later() -> None:
                for target, value in zip(targets, self.draw(func, compute), strict=True):
                    if target is not None:
                        target.copy_(value)

            self.captured.append(later)
            return real
        out = []
        for result, own, value in zip(results, given, self.draw(func, compute), strict=True):
            if is_cuda(result) and result.dtype != value.dtype and "convolution" not in name:
                raise RuntimeError(f"{name}: {result.dtype} on CUDA, {value.dtype} on the CPU")
            out.append(value if not is_cuda(result) else result if own else write(result, value))
        return tree_unflatten(out, form)

    def draw(self, func: Any, compute: Callable[[], Any]) -> list[Any]:
        """Compute an operation's results; if they are random, by the numbers of the next seed."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return tree_flatten(compute())[0]
        state = torch.get_rng_state()
        Arithmetic.seed += 1
        torch.random.default_generator.manual_seed(Arithmetic.seed)
        try:
            return tree_flatten(compute())[0]
        finally:
            torch.set_rng_state(state)


class Graph(torch.cuda.CUDAGraph):
    """A graph that computes nothing while it is captured; a replay has the CPU compute, in the same memory."""

    def capture_begin(self, *args: Any, **kwargs: Any) -> None:
        self.work: list[Callable[[], Any]] = []
        Arithmetic.captured = self.work
        super().capture_begin(*args, **kwargs)

    @torch.no_grad()
    def replay(self) -> None:
        super().replay()
        for work in self.work:
            work()


def is_copy(real: Any, own: Sequence[Tensor]) -> bool:
    """Tell whether what should be a view is in other memory than the arguments."""
    held = {x.untyped_storage().data_ptr() for x in own}
    results = (x for x in tree_flatten(real)[0] if is_cuda(x) and x.numel())
    return any(x.untyped_storage().data_ptr() not in held for x in results)
