"""A file imports from lower layers, or from files listed above it in its own; nothing here reaches up."""

import ast
import subprocess
import sys
from pathlib import Path

import fastltssl

ROOT = Path(fastltssl.__file__).parent
ORDER = [  # (layer, file or folder), in the order of the package
    (0, "types"),
    (1, "bias"), (1, "losses"), (1, "augment"), (1, "adapters"), (1, "heads"), (1, "metrics"), (1, "neighbors"),
    (2, "splits"), (2, "switches"), (2, "arrays"), (2, "prompts"), (2, "sources"), (2, "randaugment"), (2, "views"),
    (2, "towers"), (2, "tuning"), (2, "weights"), (2, "encoder"), (2, "ranks"), (2, "manifest"), (2, "contents"),
    (2, "features"),
    (2, "writer"), (2, "cache"), (2, "imports"), (2, "pipeline"), (2, "extract"), (2, "extend"), (2, "tokens"),
    (2, "pictures"), (2, "duplicates"), (2, "pretrain"), (2, "batches"),
    (3, "methods"),
    (4, "joint"), (4, "step"), (4, "population"), (4, "train"), (4, "estimator"), (4, "runs"), (4, "evaluation"),
    (4, "records"), (4, "experiment"), (4, "finetune"), (4, "live_split"), (4, "live"), (4, "predict"),
    (4, "export"), (4, "ensemble"), (4, "insight"), (4, "cure"), (4, "refit"), (4, "scene"),
    (4, "bias_study"), (4, "pseudo_study"), (4, "strategy_study"), (4, "space"),
    (4, "study"), (4, "sweeps"), (4, "protocol_grid"),
    (5, "report"), (5, "tables"), (5, "sheets"), (5, "figures"), (5, "run_figures"), (5, "exhibits"),
    (5, "report_sections"), (5, "report_page"), (5, "doctor"), (5, "demo"), (5, "config"), (5, "pages"),
    (5, "commands"), (5, "cli"), (5, "__main__"),
]  # fmt: skip
RANK = {name: index for index, (_, name) in enumerate(ORDER)}
LAYER = {name: layer for layer, name in ORDER}


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "fastltssl" and len(parts) > 1:
                yield parts


FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT)


def test_every_file_has_a_layer():
    assert {part_of(path) for path in FILES} == set(RANK)


def test_imports_go_down():
    for path in FILES:
        own = part_of(path)
        for parts in imported(path):
            assert parts[1] == own or RANK[parts[1]] < RANK[own], f"{path.name} imports {'.'.join(parts)}"


def test_methods_import_only_layers_zero_and_one_and_never_each_other():
    for path in (ROOT / "methods").glob("*.py"):
        for parts in imported(path):
            assert LAYER[parts[1]] <= 1, f"{path.name} imports {'.'.join(parts)}"


def test_only_the_top_layer_prints():
    for path in FILES:
        if LAYER[part_of(path)] < 5:
            calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not [c for c in calls if getattr(c.func, "id", "") == "print"], path.name


def test_importing_the_package_and_the_command_line_loads_no_torch():
    code = "import sys, fastltssl, fastltssl.cli; assert 'torch' not in sys.modules and 'zarr' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
