"""Results of runs: reading run folders, tables beside the published rows, and the page of figures."""

import json
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).with_name("published_results.json")


def published_sets() -> dict[str, dict[str, Any]]:
    """Read the published results: {data set: {source, metrics, rows, ...}}."""
    content = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return {name: values for name, values in content.items() if isinstance(values, dict)}
