"""Imports point one way: from a run script down to `errors`. README's file map draws the same picture."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A file or package imports only from the rows above its own.
ROWS = [
    ("errors",),
    ("files", "electrodes", "attention"),
    ("layers", "norm_ema_quantizer", "devices"),
    ("modeling_*", "utils"),
    ("eeg_data", "optim_factory"),
    ("training", "dataset_maker"),
    ("engine_for_*", "inference", "results"),
    ("run_*", "summarize_results"),
    ("demo", "benchmarks", "reference", "tests"),
]
PACKAGES = ("eeg_data", "training", "dataset_maker", "inference", "results")
MOST_LEVELS = 8  # of files that import each other
WITHOUT_TORCH = ("dataset_maker/*.py", "results/*.py", "eeg_data/hdf5.py", "eeg_data/[qv]*.py", "eeg_data/*_files.py")
FILES = [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in ROOT.glob(f"{name}/*.py"))]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def room(module: str) -> str:
    return module.partition(".")[0]


def row(module: str) -> int:
    """Return the row of a module's file or package, -1 for a library."""
    return next((number for number, names in enumerate(ROWS) if any(fnmatch(room(module), n) for n in names)), -1)


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a file's nodes, those inside functions too, without what stands under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from running(child)


def imports(path: Path) -> set[str]:
    """Return the project's modules that a file imports."""
    names = set()
    for node in running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys() or {str(node.module)}
    return {name for name in names if row(name) >= 0 or name in MODULES}


def test_imports_point_to_rows_above_never_in_a_circle_and_over_few_levels() -> None:
    graph = {module: imports(path) for module, path in MODULES.items()}
    assert len(list(ROOT.glob("*.py"))) <= 20 and not [module for module in graph if row(module) < 0]
    pairs = [(module, name) for module, names in graph.items() for name in names if room(module) != room(name)]
    assert not [f"{module} imports {name}" for module, name in pairs if row(name) >= row(module)]
    levels: dict[str, int] = {}
    for module in TopologicalSorter(graph).static_order():  # raises CycleError
        levels[module] = 1 + max((levels[name] for name in graph.get(module, ())), default=0)
    assert max(levels.values()) <= MOST_LEVELS, sorted(levels.items(), key=lambda pair: -pair[1])[:9]


def test_dataset_makers_results_and_readers_of_files_do_not_import_torch() -> None:
    names = [name for name, path in MODULES.items() if any(path.match(pattern) for pattern in WITHOUT_TORCH)]
    code = f"import sys, {', '.join(names)}; sys.exit(', '.join({{'torch', 'timm'}} & sys.modules.keys()) or 0)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(names) > 9 and ended.returncode == 0, ended.stderr
