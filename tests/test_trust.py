"""Data that somebody else made runs no code: every call that loads something is one of the safe forms."""

import ast
from pathlib import Path

import pytest

import fastltssl

ROOT = Path(fastltssl.__file__).parent
SAFE = {  # call -> what its source must hold to be safe, or None where it never is
    "torch.load": "weights_only=True",
    "torch.jit.load": "map_location",  # TorchScript runs nothing when it is loaded; only its tensors are taken
    "np.load": "allow_pickle=False",
    "yaml.load": "_Loader",  # a SafeLoader
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
    "pickle.load": None,
    "pickle.loads": None,
    "torch.export.load": "folder / 'model.pt2'",  # the program that this very export has written
    "eval": None,
    "exec": "exec(compile(source, str(file), 'exec'), module.__dict__)",  # a method file: methods/__init__ alone
    "os.system": None,
    "importlib.util.spec_from_file_location": None,
}


def unsafe(source):
    """Calls of a source that load foreign data in a form that may run code."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if is_unsafe(call)]


def is_unsafe(call):
    name, text = ast.unparse(call.func), ast.unparse(call)
    words = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if "shell" in words or words.get("weights_only", "True") != "True":
        return True
    if name.rsplit(".", 1)[-1] in ("extractall", "Unpickler", "read_pickle"):
        return True
    form = SAFE.get(name, "")
    return form is None or form not in text


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_loads_foreign_data_in_a_form_that_runs_code(path):
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(file)", "torch.load(file, weights_only=False)", "open_clip.create_model(x, weights_only=flag)",
        "np.load(file)", "np.load(file, allow_pickle=True)", "yaml.load(text, yaml.Loader)", "pickle.loads(raw)",
        "eval(text)", "archive.extractall(folder)", "subprocess.run(line, shell=True)",
    ],
)  # fmt: skip
def test_the_audit_sees_a_call_that_is_not_safe(line):
    assert unsafe(line)
