"""What every test shares: imports from the repository's root, one thread, the folder of shared recordings."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # of a launch that is none of the tests'
    os.environ.pop(name, None)
torch.set_num_threads(1)  # models are tiny: a second thread waits more than it works


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of recordings beside the checkout; without it the tests that need it are skipped."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"the recordings of this test are not here: no folder {folder}")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the recordings, so that `-m shared` selects these tests."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")
