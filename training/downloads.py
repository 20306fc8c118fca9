"""Checkpoints that a flag names by URL: fetched once, verified, kept in the cache folder. Nothing else is ever fetched.

A URL says what it must hold: `https://host/labram-base.pth#sha256=<64 hexadecimal digits>`.
"""

import argparse
import logging
import re
import sys
import urllib.error
from pathlib import Path

import torch

from errors import InputError
from files import cache_folder, sha256

logger = logging.getLogger(__name__)

_URL = re.compile(r"(?P<address>(?:https?|file)://[^#]+)#sha256=(?P<digest>[0-9a-fA-F]{64})")


def checkpoint_place(text: str) -> Path | str:
    """Type of a flag that names a checkpoint: a path, or a URL with its SHA-256, which stays text."""
    if "://" not in text:
        return Path(text)
    if not _URL.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text}: a URL needs the SHA-256 of its file, as in https://host/file.pth#sha256=<64 hexadecimal digits>"
        )
    return text


def fetched(place: Path | str) -> Path:
    """A path as it is; for a URL the file in the cache folder, fetched if it is not there. Raises InputError."""
    if isinstance(place, Path):
        return place
    match = _URL.fullmatch(place)
    assert match is not None, "flags are checked by checkpoint_place"
    address, digest = match["address"], match["digest"].lower()
    try:
        path = cache_folder() / "checkpoints" / f"{digest}.pth"
        if path.is_file() and sha256(path) == digest:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        logger.info("Fetching %s", address)
        torch.hub.download_url_to_file(address, str(path), hash_prefix=digest, progress=sys.stderr.isatty())
    except urllib.error.URLError as error:
        raise InputError(f"{address} cannot be fetched ({error.reason}): fetch it by hand and name the file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{address} cannot be fetched ({error}): fetch it by hand and name the file") from error
    except RuntimeError as error:  # another digest, or no home for the cache
        raise InputError(f"{address}: {error}: correct the #sha256= or do not use the file") from error
    return path
