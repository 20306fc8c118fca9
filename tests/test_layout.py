"""The shape of the code: which way imports point, how long files and functions are, and what the checkers say."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION = 400, 60  # lines

# A module imports only from lower levels, model files and engines not from each other, so within a level nothing does.
LEVELS = [
    {"errors", "version"},
    {"electrodes", "files", "batches", "hdf5_files", "quality", "lean_ops", "temporary_arrays", "torch_errors"},
    {
        "checkpoints",
        "metrics",
        "layers",
        "norm_ema_quantizer",
        "progress",
        "pretraining_files",
        "interruption",
        "exchange",
    },
    {
        "utils",
        "downloads",
        "loading",
        "modeling_vqnsp",
        "modeling_pretrain",
        "modeling_finetune",
        "labelled_files",
        "braindecode_layout",
    },
    {"scans", "fingerprint", "run_log", "weights"},
    {"optim_factory", "eeg_data", "conversion", "recordings", "results"},
    {"labelled_data", "training_state", "code_cache", "result_tables", "subject_results"}
    | {"recording_files", "inference", "inference_files", "inference_plots"},
    {"engine_for_vqnsp", "engine_for_pretraining", "engine_for_finetuning", "adaptation"}
    | {"table_formats", "result_figures"},
    {"report_page", "seeds"},
    {"run_vqnsp_training", "run_labram_pretraining", "run_class_finetuning", "run_inference", "summarize_results"},
]
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}
MODELS = [module for module in sorted(LEVEL) if module.startswith("modeling_")]
FOR_MAKERS = {"electrodes", "errors", "files", "version", "hdf5_files", "quality"}
FOR_MAKERS |= {"pretraining_files", "labelled_files", "scans"}
# What a model sees was made by the same pipeline.
USE_MAKERS = {"recordings", "recording_files", "inference", "run_inference"}
STANDALONE = {"bootstrap"}  # runs before anything is installed: imports the standard library only

TOP = sorted(path.stem for path in ROOT.glob("*.py"))
MAKERS = sorted((ROOT / "dataset_maker").glob("*.py"))
DEMO = sorted((ROOT / "demo").glob("*.py"))
REFERENCE = sorted((ROOT / "reference").glob("*.py"))
PRODUCT = [*(ROOT / f"{module}.py" for module in TOP), *MAKERS, *DEMO, *REFERENCE]
TESTS = sorted((ROOT / "tests").glob("*.py"))


def label(value: Path | str) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else value


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def nodes(root: ast.AST) -> Iterator[ast.AST]:
    """Walk a file without what stands under `if TYPE_CHECKING:`, which never runs."""
    yield root
    for child in ast.iter_child_nodes(root):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from nodes(child)


def imports(path: Path) -> set[str]:
    """Return the top-level names that a file imports, functions' own imports included."""
    found = set()
    for node in nodes(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add((node.module or "").split(".")[0])
    return found


def test_every_top_level_module_has_a_level() -> None:
    assert set(TOP) == LEVEL.keys() | STANDALONE, "give a new module its level in LEVELS, take a removed one out"


@pytest.mark.parametrize("module", sorted(LEVEL))
def test_imports_point_down_the_levels(module: str) -> None:
    aside = {"demo", "tests", "reference"} | (set() if module in USE_MAKERS else {"dataset_maker"})
    project = imports(ROOT / f"{module}.py") & (LEVEL.keys() | STANDALONE | aside)
    wrong = [name for name in project if LEVEL.get(name, 99) >= LEVEL[module]]
    assert not wrong, f"{module} (level {LEVEL[module]}) imports {wrong}"


@pytest.mark.parametrize("module", MODELS)
def test_a_model_file_imports_no_other_no_utils_and_no_engine(module: str) -> None:
    mine = imports(ROOT / f"{module}.py")
    allowed = {"checkpoints", "electrodes", "errors", "files", "layers", "lean_ops", "norm_ema_quantizer"}
    assert mine & LEVEL.keys() <= allowed


@pytest.mark.parametrize("path", MAKERS, ids=label)
def test_a_dataset_maker_imports_no_torch_and_little_of_the_project(path: Path) -> None:
    mine = imports(path)
    assert "torch" not in mine
    assert mine & LEVEL.keys() <= FOR_MAKERS


@pytest.mark.parametrize("module", sorted(FOR_MAKERS))
def test_what_dataset_makers_import_imports_no_torch(module: str) -> None:
    mine = imports(ROOT / f"{module}.py")
    assert "torch" not in mine and mine & LEVEL.keys() <= FOR_MAKERS


def test_importing_a_dataset_maker_does_not_import_torch() -> None:
    modules = [f"dataset_maker.{path.stem}" for path in MAKERS if path.stem != "__init__"]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules}]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", [*PRODUCT, *TESTS], ids=label)
def test_a_file_opens_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(tree(path))


@pytest.mark.parametrize("path", PRODUCT, ids=label)
def test_a_file_has_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE


@pytest.mark.parametrize("path", [*PRODUCT, *TESTS], ids=label)
def test_a_function_has_at_most_60_lines(path: Path) -> None:
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION}


@pytest.mark.parametrize("module", sorted(LEVEL))
def test_a_module_prints_nothing_but_errors(module: str) -> None:
    root = tree(ROOT / f"{module}.py")
    spared = [node for node in root.body if isinstance(node, ast.FunctionDef) and node.name == "_end"]  # of errors.py
    printing = [
        node.lineno
        for part in root.body
        if part not in spared
        for node in ast.walk(part)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing, f"{module}.py prints at lines {printing}: use logging"


def test_no_file_shadows_the_package_datasets() -> None:
    assert not (ROOT / "datasets.py").exists() and not (ROOT / "datasets").exists()


@pytest.mark.parametrize("command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_the_checkers_find_nothing(command: list[str]) -> None:
    ended = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
