"""Put each fault of MUTATIONS.md into a copy of the tree and see that its test turns red.

`python tests/mutations.py [part of a claim]`: all faults, or those whose claim holds the words. Exit code 1 if a test
stays green or cannot be run.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TESTS_FAILED = 1  # pytest's exit code; others mean that nothing was tested


class Mutation(NamedTuple):
    """A row of the table."""

    claim: str
    file: str
    before: str
    after: str
    test: str


def mutations() -> list[Mutation]:
    """Read the table of MUTATIONS.md."""
    lines = Path(__file__).with_name("MUTATIONS.md").read_text().splitlines()
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in lines if line.startswith("| ")][1:]
    return [Mutation(row[0], *(cell.strip("`") for cell in row[1:])) for row in rows]


def copy_tree(target: Path) -> None:
    """Copy what git knows or would know."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in filter(None, subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def turns_red(tree: Path, mutation: Mutation) -> bool:
    """Whether the test fails with the fault in the tree; the file is put back."""
    path = tree / mutation.file
    original = path.read_text()
    assert original.count(mutation.before) == 1, f"{mutation.file}: `{mutation.before}` is not there exactly once"
    path.write_text(original.replace(mutation.before, mutation.after))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutation.test]
        ended = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    finally:
        path.write_text(original)
    # An ERROR, in a fixture say, shows that something broke, not that the test noticed it.
    return ended.returncode == TESTS_FAILED and f"FAILED {mutation.test}" in ended.stdout


def main() -> int:
    """Try the faults, say what happened to each, return the exit code."""
    chosen = [mutation for mutation in mutations() if " ".join(sys.argv[1:]) in mutation.claim]
    green = 0
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        for mutation in chosen:
            red = turns_red(Path(folder), mutation)
            green += not red
            print(f"{'red  ' if red else 'GREEN'} {mutation.claim}: {mutation.test}", flush=True)
    print(f"{len(chosen) - green} of {len(chosen)} faults were noticed.")
    return 1 if green or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
