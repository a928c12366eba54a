"""Find the project files that a script imports, directly or not, without running it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("minigpt", "pipeline")
# tracking affects no output, so no stage depends on it or on files that only tracking imports
OBSERVER = Path("pipeline/tracking")


def imports(file: Path) -> set[str]:
    """Return the names of the modules that `file` imports, except under `if TYPE_CHECKING:`."""
    names = set()
    for node in _executed(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            # `from a import b`: b can be a module or a name in a
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _executed(node)


def module_files(name: str, root: Path = ROOT) -> set[Path]:
    """Return the project files that importing `name` runs: the module and its parent packages."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return set()
    files = set()
    for depth in range(1, len(parts) + 1):
        path = Path(*parts[:depth])
        candidates = (path / "__init__.py", path.with_suffix(".py"))
        files |= {file for file in candidates if (root / file).is_file()}
    return files


def reached(script: Path, root: Path = ROOT) -> set[Path]:
    """Return `script` and the project files that it imports, directly or not."""
    found: set[Path] = set()
    queue = {script, script.parent / "__init__.py"}
    while queue:
        file = queue.pop()
        found.add(file)
        for name in imports(root / file):
            files = {file for file in module_files(name, root) if OBSERVER not in file.parents}
            queue |= files - found
    return found


def reached_packages(stage: str, root: Path = ROOT) -> set[Path]:
    """Return the deps that a stage has to list: its script, and the packages that it imports."""
    script = Path(f"pipeline/{stage}.py")
    folders = {file.parent for file in reached(script, root)}
    return {script, *folders} - set(map(Path, PACKAGES))  # these have docstrings only


if __name__ == "__main__":
    for stage in ("build_vocab", "prepare", "train", "evaluate", "export", "quantize"):
        print(stage, *sorted(map(str, reached_packages(stage))), sep="\n      - ")
