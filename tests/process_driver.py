"""Run training scripts one after the other in one process, or in one of several, and record what each step saw.

`python process_driver.py PLAN.json` or the same under torchrun. PLAN: a list of {script, flags, record, port}; the
record of a run goes to `<record>.<rank>.pt`: losses and codes of every micro-batch, and the codebook after each change.
"""

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from norm_ema_quantizer import CodebookRevival, NormEMAVectorQuantizer
from optim_factory import Update
from run_helpers import call


def watched(original: Any, note: Any) -> Any:
    """Return the method `original` that calls `note(self, arguments, result)` after each call."""

    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        note(self, arguments, result)
        return result

    return method


def run(script: str, flags: list[str]) -> dict[str, Any]:
    """Run a script; return its exit code and the record of its steps."""
    record: dict[str, Any] = {"losses": [], "codes": [], "codebooks": []}
    latest: list[torch.Tensor] = []

    def note_loss(_: Update, arguments: Any, __: bool) -> None:
        record["losses"].append(arguments[0].detach().clone())
        record["codes"] += [codes.clone() for codes in latest[-1:]]  # of the forward pass that this loss belongs to

    def note_rows(quantizer: NormEMAVectorQuantizer, _: Any, __: Any) -> None:
        record["codebooks"].append(quantizer.embedding.weight.detach().clone())

    notes = [
        (Update, "__call__", note_loss),
        (NormEMAVectorQuantizer, "forward", lambda _, __, result: latest.append(result[1])),
        (NormEMAVectorQuantizer, "initialize", note_rows),
        (NormEMAVectorQuantizer, "apply_update", note_rows),
        (CodebookRevival, "__call__", lambda revival, _, __: note_rows(revival.quantizer, None, None)),
    ]
    patches = [patch.object(owner, name, watched(getattr(owner, name), note)) for owner, name, note in notes]
    for one in patches:
        one.start()
    try:
        record["code"] = call(script, *flags)
    finally:
        for one in patches:
            one.stop()
    return record


def main() -> None:
    """Run the whole plan."""
    for step in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = str(step["port"])  # a new group cannot meet at the port of the one before
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        torch.save(run(step["script"], step["flags"]), f"{step['record']}.{os.environ.get('RANK', '0')}.pt")


if __name__ == "__main__":
    main()
