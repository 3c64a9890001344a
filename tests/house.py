"""The order of the house: `make house` prints its rooms and ends with 1 where a rule is broken. Needs Python alone.

A folder imports only from those above it in LAYERS (nested folders count with their parent), and no files import each
other in a circle. The public face, __init__, __main__ and the old names in _moved, may import all.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

LAYERS = (  # from the ground up; a word of one file in the root, or a folder
    "errors", "reading", "progress", "knobs", "types", "machine", "functional", "methods", "images", "cache", "encoder",
    "training", "live", "runs", "analysis", "show", "commands",
)  # fmt: skip
FACE = ("__init__", "__main__", "_moved")
CROWDED = ("methods", "commands", "show.studio", "tiny")  # one file per thing of a kind: these may be many
MOST_FILES, MOST_ROOT, MOST_LINES = 10, 8, 60
AT_HOME = {"click": "commands", "matplotlib": "show", "panel": "show", "bokeh": "show"}  # a library, and its one folder


def read(root: Path) -> dict[str, ast.Module]:
    """Every module below a package folder, by its dotted name without that of the package."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        modules[name] = ast.parse(path.read_text(encoding="utf-8"))
    return modules


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names that a module imports; what stands under TYPE_CHECKING is for editors and does not count."""
    skipped = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    unseen = {id(inner) for node in skipped for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(modules: dict[str, ast.Module], package: str) -> dict[str, set[str]]:
    """The modules of the package that each module imports."""
    found: dict[str, set[str]] = {name: set() for name in modules}
    for name, tree in modules.items():
        for target in imports(tree):
            if target.startswith(package + "."):
                inner = target.removeprefix(package + ".")
                while inner and inner not in modules:  # the last parts are names inside a module
                    inner = inner.rpartition(".")[0]
                found[name] |= {inner} - {"", name}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A path of modules that ends where it begins, or nothing."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in sorted(graph[name]):
                if loop := walk(target, [*path, name]):
                    return loop
            done.add(name)
        return []

    return next((loop for name in graph if (loop := walk(name, []))), [])


def broken(root: Path) -> list[str]:
    """A line for each rule that a module breaks."""
    package, modules = root.name, read(root)
    graph = arrows(modules, package)
    lines = [f"{name} stands in no layer" for name in modules if _layer(name) not in (*LAYERS, *FACE)]
    inside = {name: targets for name, targets in graph.items() if _layer(name) in LAYERS}
    for name, targets in inside.items():
        for target in sorted(targets):
            own, other = _layer(name), _layer(target)
            if other in FACE or (other in LAYERS and LAYERS.index(other) > LAYERS.index(own)):
                lines.append(f"{name} imports {target}, which stands above it")
            if own != other == "methods" and target != "methods":
                lines.append(f"{name} imports {target}: a method is known by name in its own file only")
            if own == other == "methods" and name != "methods":
                lines.append(f"{name} imports {target}: a method imports the root and functional alone")
    if loop := circle(inside):
        lines.append(f"a circle of imports: {' -> '.join(loop)}")
    for name, tree in modules.items():
        lines += _inside(name, tree, modules, package)
    files = rooms(root)
    for folder, names in files.items():
        if folder and folder not in CROWDED and len(names) > MOST_FILES:
            lines.append(f"{folder}/ holds {len(names)} files, {MOST_FILES} at most")
    if len(files[""]) > MOST_ROOT:
        lines.append(f"{len(files[''])} modules at the root, {MOST_ROOT} at most: {', '.join(files[''])}")
    return lines


def _inside(name: str, tree: ast.Module, modules: dict[str, ast.Module], package: str) -> Iterator[str]:
    """What one module does that only others may, and its functions that are too long."""
    layer = _layer(name)
    for target in imports(tree):
        home = AT_HOME.get(target.split(".")[0])
        if home and layer not in (home, *FACE):
            yield f"{name} imports {target}, which is at home in {home}/"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MOST_LINES:
                yield f"{name}.{node.name} has {length} lines, {MOST_LINES} at most"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print" and layer not in ("show", "commands"):
            yield f"{name} prints: only show/ and commands/ do"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(package + "."):
            yield from _unresolved(name, node.value, modules, package)


def _unresolved(name: str, text: str, modules: dict[str, ast.Module], package: str) -> Iterator[str]:
    """An import written as a string, "package.module:name", that leads nowhere."""
    module, colon, member = text.removeprefix(package + ".").partition(":")
    if not colon or not member.isidentifier():
        return
    if module not in modules or member not in _members(modules[module]):
        yield f"{name} names {text}, which is not there"


def _members(tree: ast.Module) -> set[str]:
    members = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            members.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        members |= {target.id for target in targets if isinstance(target, ast.Name)}
    return members


def _layer(name: str) -> str:
    return name.split(".")[0]


def rooms(root: Path) -> dict[str, list[str]]:
    """Names of the Python files in each folder, without __init__ but in the root, where all count."""
    files: dict[str, list[str]] = {"": []}
    for path in sorted(root.rglob("*.py")):
        folder = ".".join(path.relative_to(root).parts[:-1])
        if path.stem != "__init__" or not folder:
            files.setdefault(folder, []).append(path.stem)
    return files


def main() -> int:
    """Print the rooms and what is broken."""
    root = Path(__file__).parents[1] / "fastltssl"
    graph = arrows(read(root), root.name)
    for folder, files in rooms(root).items():
        print(f"{folder.replace('.', '/') or '(root)':16} {len(files):3}  {' '.join(files)}")
    between = {(_layer(a), _layer(b)) for a, targets in graph.items() for b in targets if _layer(a) != _layer(b)}
    lines = broken(root)
    print(f"{len(graph)} modules, {sum(map(len, graph.values()))} imports, {len(between)} between rooms")
    print("\n".join(lines) if lines else "every rule of the house is kept")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
