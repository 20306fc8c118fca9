"""--compile: few graphs for many montages, no silent falling back, the same numbers.

Which graphs are made is up to torch's front end, so the tests leave out the compiler behind it (backend `eager`).
"""

import functools
from argparse import Namespace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from timm.models import create_model
from torch._dynamo.utils import counters

import layers
import modeling_finetune  # noqa: F401  (registers the classifiers)
import modeling_vqnsp  # noqa: F401
import utils
from errors import translated
from golden_recipe import eeg, fill
from layers import compile_blocks
from run_helpers import MASKED, call, log_lines, pretraining_file

MONTAGES = [(1, 1), (3, 2), (19, 3), (5, 1), (1, 4)]  # electrodes, seconds
eager = functools.partial(compile_blocks, backend="eager")


@pytest.fixture(autouse=True)
def anew() -> Any:
    """Give a test no graphs of others, and leave none."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def classifier(**options: Any) -> Any:
    return fill(create_model("labram_tiny_patch200_200", **{"depth": 3, "drop_path_rate": 0.3, **options}))


def outputs(model: Any, electrodes: int, seconds: int, batch: int, *, training: bool) -> torch.Tensor:
    model.train(training)
    torch.manual_seed(0)  # of drop path
    with torch.set_grad_enabled(training):
        return model(eeg(electrodes, (batch, electrodes, seconds, 200)), list(range(electrodes + 1)))


def test_many_montages_with_drop_path_need_four_graphs_and_give_the_same_numbers() -> None:
    compiled, model = classifier(), classifier()
    eager(compiled)
    for batch, graphs in ((4, 4), (3, 4), (1, 8)):  # one window is a shape of its own to torch
        for electrodes, seconds in MONTAGES:
            for training in (True, False):
                case = (electrodes, seconds, batch)
                torch.testing.assert_close(
                    outputs(compiled, *case, training=training), outputs(model, *case, training=training)
                )
        # With and without a gradient; blocks with drop path and, in evaluation or at rate 0, without.
        assert 0 < counters["stats"]["unique_graphs"] <= graphs
    assert not counters["graph_break"]


def test_graphs_without_end_are_an_error_and_not_a_silent_return_to_uncompiled_code() -> None:
    model = classifier()
    eager(model)
    with torch._dynamo.config.patch(recompile_limit=1):
        outputs(model, 3, 2, 4, training=False)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            outputs(model, 3, 2, 4, training=True)
    assert "--no_compile" in str(translated(error.value, Namespace(device="cpu")))


def test_a_compiled_run_logs_the_numbers_of_one_that_is_not(tmp_path: Path) -> None:
    """Of stage 2: the tokenizer, the masked model and recomputed blocks are compiled."""
    train = tmp_path / "train"
    pretraining_file(train / "a.hdf5", seconds=(12,))
    pretraining_file(train / "b.hdf5", seconds=(9,), electrodes=("FP1", "O2", "T3"), seed=4)
    torch.manual_seed(0)
    tokenizer = create_model("vqnsp_encoder_tiny_decoder_1x200x4", n_code=16, code_dim=8, quantize_kmeans_init=False)
    torch.save({"model": tokenizer.state_dict()}, tmp_path / "tokenizer.pth")
    flags = [*MASKED, "--train_data", train, "--tokenizer_weight", tmp_path / "tokenizer.pth", "--grad_checkpoint"]
    lines = []
    for name in ("compile", "no_compile"):
        with patch.object(utils, "compile_blocks", eager):
            assert call("run_labram_pretraining", *flags, f"--{name}", "--output_dir", tmp_path / name) == 0
        lines.append(log_lines(tmp_path / name))
        assert bool(counters["stats"]["unique_graphs"]) == (name == "compile")
        torch._dynamo.reset()
        counters.clear()
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)


def test_compiled_blocks_keep_less_for_the_gradient_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, gradients = [], []
    for budget in (layers.MEMORY_BUDGET, 1.0):
        monkeypatch.setattr(layers, "MEMORY_BUDGET", budget)
        torch._dynamo.reset()
        torch.manual_seed(0)
        attention: dict[str, Any] = {"qkv_bias": False, "qk_norm": True, "attn_drop": 0.0}
        model = torch.nn.Sequential(layers.Block(40, 2, init_values=0.1, drop=0.0, drop_path=0.0, **attention))
        compile_blocks(model, backend="aot_eager_decomp_partition")  # the front end and what splits off the gradient
        x, sizes = torch.randn(4, 33, 40, requires_grad=True), []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = model(x)
        out.square().sum().backward()
        kept.append(sum(sizes))
        gradients.append(x.grad)
    assert kept[0] < 0.75 * kept[1]
    torch.testing.assert_close(*gradients)
