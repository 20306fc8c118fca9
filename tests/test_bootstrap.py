"""The environment maker, which runs before anything is installed."""

import ast
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bootstrap

PROJECT = Path(bootstrap.__file__).parent


def fake_tools(monkeypatch: pytest.MonkeyPatch, *, fail: bool = False) -> list[list[str]]:
    """Replace venv and pip; returns the list that their commands go to."""
    commands: list[list[str]] = []

    def create(folder: Path, *, with_pip: bool) -> None:
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "bin/python").touch()

    def run(command: list[str], *, check: bool) -> None:
        commands.append(command)
        if fail:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(bootstrap.venv, "create", create)
    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    return commands


def test_an_environment_is_installed_once_and_again_when_the_requirements_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = fake_tools(monkeypatch)
    requirements, further = tmp_path / "requirements.txt", tmp_path / "further.txt"
    requirements.write_text("a\n")
    further.write_text("c\n")
    make = functools.partial(bootstrap.make_environment, tmp_path / "venv", requirements=[requirements])
    for expected in (1, 1):
        make(pinned=True)
        assert len(commands) == expected
    requirements.write_text("b\n")
    make(pinned=True)
    assert len(commands) == 2 and "--constraint" in commands[0]
    for _ in range(2):  # and another file beside it
        bootstrap.make_environment(tmp_path / "venv", pinned=True, requirements=[requirements, further])
    make(pinned=True)
    assert len(commands) == 3 and commands[2][-1] == str(further)
    make(pinned=False)
    assert len(commands) == 4 and "--constraint" not in commands[3]


def test_an_installation_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tools(monkeypatch, fail=True)
    with pytest.raises(subprocess.CalledProcessError):
        bootstrap.make_environment(tmp_path / "venv", pinned=True)
    commands = fake_tools(monkeypatch)
    bootstrap.make_environment(tmp_path / "venv", pinned=True)
    assert len(commands) == 1


def test_an_environment_that_was_cut_off_while_it_was_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = fake_tools(monkeypatch)
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").touch()  # before pip came
    bootstrap.make_environment(tmp_path / "venv", pinned=True)
    assert "Making the environment" in capsys.readouterr().out and len(commands) == 1
    bootstrap.make_environment(tmp_path / "venv", pinned=True)
    assert "Making the environment" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "installed", "begins"),
    [
        (["env"], 1, []),
        (["demo", "--size", "tiny"], 1, ["-m", "demo", "--size", "tiny"]),
        (["test", "-k", "errors"], 2, ["-m", "pytest", "-n", "logical"]),
        (["test", "--newest"], 1, ["-m", "pytest", "-n", "logical"]),
        (["coverage"], 2, ["-m", "pytest", "-n", "logical"]),
        (["soak"], 1, ["-m", "pytest", "tests/test_recovery.py"]),
    ],
)
def test_a_command_runs_in_the_environment_with_the_further_words_and_its_exit_code_is_ours(
    words: list[str], installed: int, begins: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tools(monkeypatch)
    seen: list[tuple[list[str], dict[str, str] | None]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        seen.append((command, options.get("env")))
        return subprocess.CompletedProcess(command, 0 if options.get("check") else 3)

    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    monkeypatch.delenv("LABRAM_SOAK", raising=False)
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", *words, "--venv", str(tmp_path / "venv")])
    assert bootstrap.main() == (3 if begins else 0)
    assert [command[1:4] == ["-m", "pip", "install"] for command, _ in seen] == [True] * installed + [False] * bool(
        begins
    )
    if begins:
        command, variables = seen[-1]
        assert command[0] == str(tmp_path / "venv/bin/python") and command[1 : 1 + len(begins)] == begins
        assert command[len(command) - len(words[1:]) :] == words[1:] or words[1:] == ["--newest"]
        assert variables and variables.get("LABRAM_SOAK") == ("20" if words == ["soak"] else None)


def test_an_environment_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tools(monkeypatch, fail=True)
    monkeypatch.setattr(sys, "argv", ["bootstrap.py", "env", "--venv", str(tmp_path / "venv")])
    assert bootstrap.main() == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: the environment {tmp_path / 'venv'} could not")


def test_bootstrap_imports_nothing_beyond_the_standard_library() -> None:
    tree = ast.parse(Path(bootstrap.__file__).read_text())
    imported = {
        name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names


def test_every_make_target_is_the_bootstrap_command_that_the_readme_names() -> None:
    makefile, readme = (PROJECT / "Makefile").read_text(), (PROJECT / "README.md").read_text()
    for target in ("env", "demo", "test", "coverage"):
        assert f"{target}:\n\t$(PYTHON) bootstrap.py {target} " in makefile
        assert f"make {target}" in readme and f"python3 bootstrap.py {target}" in readme


def test_every_requirement_has_a_lower_bound_an_upper_major_and_a_tested_version() -> None:
    texts = [file.read_text() for file in (bootstrap.REQUIREMENTS, bootstrap.COMPARED)]
    lines = [line for text in texts for line in text.splitlines() if line and line[0] != "#"]
    pinned = {line.split("==")[0] for line in (PROJECT / "constraints.txt").read_text().splitlines() if "==" in line}
    for line in lines:
        name = line.split(">=")[0]
        assert ">=" in line and ",<" in line, line
        assert name in pinned, name
