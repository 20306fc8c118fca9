"""Checkpoints from the Hugging Face hub: `hf://ORG/REPO[@REVISION][/FILE]` in the place of a file's path.

Nothing is fetched unless such an address is given. The client is huggingface_hub's: it keeps what it has fetched, finds
the user's token, and takes another server from the environment variable HF_ENDPOINT.
"""

import logging
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from errors import InputError, UsageError, one_line
from files import sha256

logger = logging.getLogger(__name__)

FORM = "hf://ORG/REPO[@REVISION][/FILE]"
ADDRESS = re.compile(r"hf:/+(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?(/(?P<file>.+))?")  # a Path has one slash
WEIGHTS = "model.safetensors"  # the file that is taken where none is named
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def client() -> Any:
    """Return huggingface_hub's client. Raises UsageError where the package is missing."""
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UsageError(
            "the hub needs the package huggingface_hub: python -m pip install -r requirements-peers.txt"
        ) from None
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def local_file(place: str | Path) -> Path:
    """Return the path of a checkpoint on this machine, fetched if `place` is an address on the hub."""
    return _fetch(Path(place).as_posix())[0] if is_address(place) else Path(place)


def described(place: str | Path | None) -> dict[str, str]:
    """Return what checkpoints keep of a fetched file: repository, revision (commit), file, SHA-256. A path gives {}."""
    return {"fetched": _fetch(Path(place).as_posix())[1]} if place is not None and is_address(place) else {}


def is_address(place: str | Path) -> bool:
    """Whether a flag's value is an address on the hub, not a path."""
    return Path(place).as_posix().startswith("hf:/")


@lru_cache
def _fetch(address: str) -> tuple[Path, str]:
    """Fetch a file once a process. Raises UsageError for an address of another form, InputError if it cannot be had."""
    parts = ADDRESS.fullmatch(address)
    if not parts:
        raise UsageError(f"hf://{address[3:].lstrip('/')}: an address on the hub has the form {FORM}")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every try, twice; the last one raises
    logger.info("Fetching hf://%s (the client tries for half a minute).", address[3:].lstrip("/"))
    api, repo, revision = client(), parts["repo"], parts["revision"]
    try:
        name = parts["file"] or _only_file(api.list_repo_files(repo, revision=revision), repo)
        path = Path(api.hf_hub_download(repo, name, revision=revision))
    except InputError:
        raise
    except Exception as error:  # the client raises its own, its HTTP library's and the system's
        raise InputError(
            f"{_shown(repo, revision, parts['file'])}: cannot be fetched, {type(error).__name__} "
            f"({one_line(error)[:200]}): correct the address, log in (hf auth login), or name a file on this machine"
        ) from error
    commit = path.parts[-1 - len(Path(name).parts)]  # the client keeps snapshots/COMMIT/FILE
    text = f"{_shown(repo, commit, name)} (SHA-256 {sha256(path)})"
    logger.info("Fetched %s.", text)
    return path, text


def _shown(repo: str, revision: str | None, name: str | None) -> str:
    return f"hf://{repo}{f'@{revision}' if revision else ''}{f'/{name}' if name else ''}"


def _only_file(names: list[str], repo: str) -> str:
    """Choose the checkpoint of a repository. Raises InputError if it has none, or several and none is WEIGHTS."""
    files = [name for name in names if name.endswith(SUFFIXES)]
    if WEIGHTS in files:
        return WEIGHTS
    if len(files) != 1:
        held = f"holds {', '.join(files[:10])}: name one" if files else "holds no checkpoint: name a file"
        raise InputError(f"hf://{repo} {held}, hf://{repo}/FILE")
    return files[0]
