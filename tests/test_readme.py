"""The README tells the truth: its tree, its commands, its YAML and its Python."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


MAP = ROOT / "docs" / "map.md"


def rooms() -> str:
    """The rooms of the source tree, each with the first line of its docstring."""
    return "\n".join(line for line in tree().splitlines() if not line.startswith("|  "))


def tree() -> str:
    """The source tree with the first line of each file's docstring."""
    source = ROOT / "src" / "palate"
    lines = ["src/palate/"]
    for path in sorted(source.rglob("*.py"), key=lambda p: (len(p.relative_to(source).parts) > 1, p.relative_to(source).parts)):
        parts = path.relative_to(source).parts
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
        if path.name == "__init__.py":
            if len(parts) > 1:
                lines.append(f"|- {'/'.join(parts[:-1]) + '/':<20} {summary}")
            continue
        indent = "|  " * (len(parts) - 1)
        lines.append(f"{indent}|- {parts[-1]:<{20 - len(indent)}} {summary}")
    return "\n".join(lines)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_tree_is_true() -> None:
    assert blocks("text")[0].strip() == rooms(), "run `make map`"
    assert MAP.read_text(encoding="utf-8") == map_page(), "run `make map`"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", "\n".join(blocks("bash")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_palate_command_is_accepted(tmp_path: Path, monkeypatch) -> None:
    """Each command of the README gets past its parser: what stops it is a file that is not there, never an option."""
    from palate.cli.main import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("palate.judging.caller.FIRST_PAUSE", 0.0)  # endpoints of the README are not there, however often they are asked
    (tmp_path / "run.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "sources.yaml").write_text(blocks("yaml")[1])
    commands = [line.split("#")[0] for line in "\n".join(blocks("bash")).splitlines() if line.startswith("palate ")]
    assert len(commands) == 25
    for command in commands:
        assert main(shlex.split(command)[1:]) in (3, 4), command


def test_the_yaml_is_the_example_and_is_valid() -> None:
    from palate.training.settings import read_settings

    assert blocks("yaml")[0] == (ROOT / "examples" / "run.yaml").read_text(encoding="utf-8")
    settings = read_settings(ROOT / "examples" / "run.yaml", [])
    assert settings.data.max_length == 2048 and settings.loss.centering == 0.01 and settings.training["learning_rate"] == 1e-5


def test_the_python_is_the_example_and_runs(base_models: dict[str, Path], tmp_path: Path) -> None:
    example = ROOT / "examples" / "train_and_score.py"
    assert blocks("python")[0].strip() in example.read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, str(example), str(base_models["bert"]), str(tmp_path / "out")], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "eval_accuracy" in done.stdout and (tmp_path / "out" / "reward_contract.json").is_file()


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_documented_layouts_are_the_table() -> None:
    from palate.data.formats import LAYOUTS

    documented = re.findall(r"^\| ([a-z][^|]*?) \|", (ROOT / "docs" / "formats.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.IGNORECASE)
    assert [layout.name for layout in LAYOUTS] == [name for name in documented if name != "layout"]


def map_page() -> str:
    return f"# The map\n\nEvery file of the source with the first line of its docstring, as `make map` writes it.\n\n```text\n{tree()}\n```\n"


if __name__ == "__main__":  # `make map`
    MAP.write_text(map_page(), encoding="utf-8")
    (ROOT / "README.md").write_text(README.replace(blocks("text")[0], rooms() + "\n"), encoding="utf-8")
