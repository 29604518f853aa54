"""Which modules of the package a piece of code imports, read from its syntax tree; nothing is executed."""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "irstd_nb"


def modules() -> dict[str, Path]:
    "Dotted name -> file of every module of the package."
    return {dotted(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_file(name: str) -> Path | None:
    base = ROOT.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def absolute(code: str, package: str = "") -> Iterator[str]:
    "Every imported name in full, also imports inside functions; `package` is what a leading dot means."
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported(code: str, package: str = "") -> set[str]:
    "Modules of this package that the code imports itself."
    return {name for name in absolute(code, package) if name.split(".")[0] == PACKAGE and module_file(name)}


@cache
def imported_by(name: str) -> frozenset[str]:
    "Modules of this package that one module of it imports itself."
    path = module_file(name)
    return frozenset(imported(path.read_text(encoding="utf-8"), name if path.name == "__init__.py" else name.rpartition(".")[0]))


def closure(names: Iterable[str]) -> set[str]:
    "These modules, the packages that hold them, and all that they import in turn."
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [*imported_by(name), *([name.rpartition(".")[0]] if "." in name else [])]
    return found


@cache
def does_something(path: Path) -> bool:
    "Whether a module holds more than a docstring and names such as `__version__`; most `__init__.py` do not."
    def idle(node: ast.stmt) -> bool:
        return (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                or isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id.startswith("__") for t in node.targets))
    return not all(map(idle, ast.parse(path.read_text(encoding="utf-8")).body))
