"""Which project files a script reaches by import, found by reading, not by running."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("minigpt", "pipeline")
# it observes and cannot change an out, so no stage depends on it or on what only it reaches
OBSERVER = Path("pipeline/tracking.py")


def imports(file: Path) -> set[str]:
    """The names of all modules that `file` imports, inside functions too, `if TYPE_CHECKING:` left out."""
    names = set()
    for node in _executed(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            # `from a import b`: b may be a module or a name in a
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _executed(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _executed(node)


def module_files(name: str, root: Path = ROOT) -> set[Path]:
    """The project files that importing `name` runs: the module and the packages around it."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return set()
    files = set()
    for depth in range(1, len(parts) + 1):
        path = Path(*parts[:depth])
        files |= {
            file
            for file in (path / "__init__.py", path.with_suffix(".py"))
            if (root / file).is_file()
        }
    return files


def reached(script: Path, root: Path = ROOT, skip: Path | None = OBSERVER) -> set[Path]:
    """`script` and all project files that it reaches by import; paths relative to `root`."""
    found: set[Path] = set()
    queue = {script, script.parent / "__init__.py"}
    while queue:
        file = queue.pop()
        found.add(file)
        for name in imports(root / file):
            queue |= module_files(name, root) - found - {skip}
    return found


if __name__ == "__main__":
    for stage in ("build_vocab", "prepare", "train", "evaluate", "export"):
        print(stage, *sorted(map(str, reached(Path(f"pipeline/{stage}.py")))), sep="\n      - ")
