"""Exports on the Hugging Face hub, with a model card that says data, recipe and results."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errors import InputError, UsageError, one_line
from inference.weights import HUB_CONFIG, HUB_WEIGHTS, Description
from training import FREE_FLAGS, checkpoints, hub

logger = logging.getLogger(__name__)

DATA_FLAGS = ("train_data", "val_data", "dataset")


def check_repository(repo: str) -> None:
    """Raise UsageError for a name that no repository has, or if the hub's client is missing."""
    if len([part for part in repo.split("/") if re.fullmatch(r"[\w.-]+", part)]) != 2 or repo.count("/") != 1:
        raise UsageError(f"--push {repo}: must be ORG/REPO, without hf:// and revision")
    hub.client()


def push(repo: str, weights: Path, config: Path, card: str) -> str:
    """Upload an export and its card in one commit, into a repository that is made if it is missing; return its commit.

    The files get the names that Hugging Face's loaders expect. Raises InputError if the hub refuses.
    """
    api = hub.client()
    from huggingface_hub import CommitOperationAdd

    try:
        api.create_repo(repo, exist_ok=True)
        contents: dict[str, Any] = {HUB_WEIGHTS: weights, HUB_CONFIG: config, "README.md": card.encode()}
        files = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=value) for name, value in contents.items()]
        commit = str(api.create_commit(repo, files, commit_message="LaBraM: weights, config, model card").oid)
    except Exception as error:  # the client raises its own, its HTTP library's and the system's
        raise InputError(
            f"--push {repo}: not uploaded, {type(error).__name__} ({one_line(error)[:200]}); {weights} is written: "
            "repeat this when the hub can be reached, logged in (hf auth login) with a token that may write there"
        ) from error
    logger.info("Pushed to hf://%s@%s.", repo, commit)
    return commit


def model_card(state: Mapping[str, Any], description: Description, *, to: str) -> str:
    """Write the card of a checkpoint: Markdown with a header of YAML. Of paths it has the last part alone.

    state: as `checkpoints.read` gives it; what it does not say, the card says is not known.
    """
    flags = state["args"] if isinstance(state.get("args"), dict) else {}
    header = {"library_name": "braindecode"} if to == "braindecode" else {}
    header |= {"tags": "[eeg, labram]"}
    lines = ["---", *(f"{key}: {value}" for key, value in header.items()), "---", "", f"# {description.model}", ""]
    lines += [f"LaBraM, {checkpoints.STAGES[description.stage]}. EEG in units of 100 uV at 200 Hz, 0.1 to 75 Hz."]
    data, described = {name: flags[name] for name in DATA_FLAGS if flags.get(name)}, dict[str, Any]()
    if description.data_set:
        described = {"data set": description.data_set, "task": description.task, "classes": list(description.classes)}
        described |= {"electrodes": list(description.electrodes), "window": f"{description.window_seconds} s"}
    settings = state.get("settings") or {}
    recipe = {f"--{key}": value for key, value in flags.items() if key not in FREE_FLAGS and value is not None}
    recipe |= {
        key: settings[key] for key in ("code version", "torch version", "processes", "fetched") if key in settings
    }
    best = (state.get("extras") or {}).get("best") or {}
    results = {"epoch": best.get("epoch", state.get("epoch"))} | dict(best.get("stats") or {})
    for title, values in (("Data", data | described), ("Recipe", recipe), ("Results", results)):
        shown = {key: value for key, value in values.items() if value not in (None, [], "")}
        rows = [f"| {key} | {_plain(value, is_path=key not in described)} |" for key, value in shown.items()]
        lines += ["", f"## {title}", "", *(["| | |", "|---|---|", *rows] if rows else ["Not known."])]
    return "\n".join([*lines, ""])


def _plain(value: Any, *, is_path: bool) -> str:
    """Return a value as text in a cell; of paths their last part, because folders name people and machines."""
    if isinstance(value, list | tuple):
        return ", ".join(_plain(one, is_path=is_path) for one in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if is_path and not hub.is_address(text):
        text = text.rstrip("/").rpartition("/")[2]
    return text.replace("|", r"\|")
