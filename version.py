"""The project's version, as written into every file and output folder it makes."""

import ast
import hashlib
import subprocess
from functools import lru_cache
from pathlib import Path

__version__ = "0.1.0"

SCRIPTS = ("run_vqnsp_training", "run_labram_pretraining", "run_class_finetuning")


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return the version plus the git commit where there is one, e.g. `0.1.0+1a2b3c4-dirty`. Never raises."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}" if commit else __version__


@lru_cache(maxsize=1)
def source_digest() -> str:
    """Return a digest of the modules that training consists of: it changes with an edited line, commit or not."""
    digest = hashlib.sha256()
    for path in sorted(sources(Path(__file__).resolve().parent)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def sources(folder: Path) -> set[Path]:
    """The scripts of training and what they import from their folder: a user's own file beside them is no part."""
    found: set[Path] = set()
    waiting = [folder / f"{script}.py" for script in SCRIPTS]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            waiting += [folder / f"{name}.py" for name in names]
    return found
