"""No pickle is read or written and no code that comes with data runs: searched for in the syntax, not in the text."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "tunesmith"
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
FORBIDDEN = {
    "torch.save", "torch.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter",
    "pandas.read_pickle", "numpy.fromregex", "runpy.run_path", "runpy.run_module", "code.interact",
    "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
    "transformers.dynamic_module_utils.get_class_from_dynamic_module",
}  # fmt: skip
MUST_SAY = {"numpy.load": ("allow_pickle", False), "numpy.save": ("allow_pickle", False),
            "numpy.savez": ("allow_pickle", False), "numpy.savez_compressed": ("allow_pickle", False)}  # fmt: skip
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "BaseLoader"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}


def names_of(tree):
    """Name in the file -> what it stands for, such as np -> numpy."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                alias.asname or alias.name.partition(".")[0]: alias.name
                if alias.asname
                else alias.name.partition(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def dotted(node, names):
    """numpy.load for np.load; empty for what is no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    inner = dotted(node.value, names) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


def said(call, keyword):
    """The constant that a call gives for a keyword; None if it gives none."""
    return next((getattr(k.value, "value", ...) for k in call.keywords if k.arg == keyword), None)


def unsafe(tree):
    """(line, what) for everything that can run what a file holds."""
    names = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((node.lineno, f"import {m}") for m in modules if m.partition(".")[0] in PICKLES)
        if isinstance(node, ast.Attribute | ast.Name):
            loader = dotted(node, names)
            if (
                loader.startswith("yaml.")
                and loader.endswith("Loader")
                and loader.rpartition(".")[2] not in SAFE_LOADERS
            ):
                yield node.lineno, loader
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        if name in FORBIDDEN or name in RUNS_TEXT or name.removeprefix("builtins.") in RUNS_TEXT:
            yield node.lineno, name
        if name in MUST_SAY and said(node, MUST_SAY[name][0]) is not MUST_SAY[name][1]:
            yield node.lineno, f"{name} without {MUST_SAY[name][0]}=False"
        if name in ("yaml.load", "yaml.load_all", "yaml.compose", "yaml.compose_all"):
            loader = next((k.value for k in node.keywords if k.arg == "Loader"), [*node.args, None, None][1])
            if dotted(loader, names).rpartition(".")[2] not in SAFE_LOADERS:
                yield node.lineno, f"{name} without a safe loader"
        if any(k.arg == "trust_remote_code" and getattr(k.value, "value", ...) is not False for k in node.keywords):
            yield node.lineno, "trust_remote_code"
        if any(k.arg == "weights_only" for k in node.keywords):
            yield node.lineno, "weights_only: a pickle"
        is_model = "Model" in name and name.endswith(".from_pretrained")
        if is_model and said(node, "use_safetensors") is not True:
            yield node.lineno, "a model whose weights may be a pickle (say use_safetensors=True)"


def test_no_file_reads_or_writes_pickle_or_runs_what_it_reads():
    files = sorted(SRC.rglob("*.py"))
    assert len(files) > 70, "found few files; has the package moved?"
    calls = [node for path in files for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert sum(getattr(call.func, "attr", "") in ("load", "loads", "load_file") for call in calls) >= 5
    found = [
        f"{path.relative_to(SRC)}:{line}: {what}"
        for path in files
        for line, what in unsafe(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "wrong",
    [
        "import pickle", "import dill as d", "from joblib import load", "import cloudpickle.cloudpickle",
        "import torch\ntorch.load(path)", "import torch as t\nt.save(x, path)", "from torch import load\nload(path)",
        "import numpy as np\nnp.load(path)", "import numpy\nnumpy.load(path, allow_pickle=True)",
        "from numpy import save as keep\nkeep(path, x)", "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "import yaml\nyaml.load(text)", "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nclass L(yaml.Loader): pass", "from yaml import UnsafeLoader as L\nL(text).get_single_data()",
        "import yaml\nyaml.load(text, yaml.FullLoader)", "from yaml import unsafe_load as load\nload(text)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)", "load(path, trust_remote_code=wanted)",
        "from transformers import AutoModelForCausalLM as M\nM.from_pretrained(path)",
        "eval(text)", "exec(text)", "import builtins\nbuiltins.eval(text)", "__import__(name)",
    ],
)  # fmt: skip
def test_the_search_looks(wrong):
    assert list(unsafe(ast.parse(wrong)))


@pytest.mark.parametrize(
    "right",
    [
        "import numpy as np\nnp.load(path, allow_pickle=False)", "import yaml\nyaml.safe_load(text)",
        "import yaml\nclass L(yaml.SafeLoader): pass", "import yaml\nyaml.compose(text, Loader=yaml.SafeLoader)",
        "import re\nre.compile(text)",
        "import json\njson.load(file)", "import ast\nast.literal_eval(text)", "model.eval()",
        "from safetensors.torch import save\nsave(tensors)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=False)",
    ],
)  # fmt: skip
def test_what_is_safe_is_let_be(right):
    assert list(unsafe(ast.parse(right))) == []
