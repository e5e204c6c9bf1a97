"""Who may import whom: the layers of the package, read from its source."""

import ast
import sys
from pathlib import Path

import pytest

import summarymixing

ROOT = Path(summarymixing.__file__).parent
PACKAGE = ROOT.name
# What a part of the package may import of the package itself; itself is understood.
INSIDE = {
    "errors": set(),
    "files": set(),
    "machine": {"files", "errors"},
    "ops": {"errors"},
    "nnet": {"ops", "errors"},
    "models": {"nnet", "ops", "errors"},
    "published": {"models", "nnet", "ops", "errors"},
    "decoding": {"models", "nnet", "ops", "errors"},
    "dataio": {"machine", "files", "errors"},
    "scoring": {"errors"},
    "training": {"dataio", "scoring", "decoding", "ops", "machine", "files", "errors"},
    # Of training: what a checkpoint holds; of scoring: what a model card says.
    "inference": {
        *("training", "dataio", "scoring", "decoding", "models", "nnet", "ops"),
        *("files", "errors"),
    },
    # What it uses of inference is without torch: a test of the commands holds it.
    "runtime": {"inference", "dataio", "files", "errors"},
    "export": {
        *("runtime", "inference", "decoding", "models", "nnet", "ops"),
        *("files", "errors"),
    },
    "benchmark": {"inference", "training", "dataio", "models", "ops", "files", "errors"},
    "adapt": {"inference", "training", "dataio", "scoring", "ops", "files", "errors"},
}
# And of other packages, the standard library aside, where that is limited.
OUTSIDE = {
    "errors": set(),
    "files": set(),
    "machine": {"torch"},
    "ops": {"torch", "triton"},
    "nnet": {"torch"},
    "models": {"torch", "speechbrain"},
    "published": {"torch"},
    # torch for a model that is not exported.
    "runtime": {"numpy", "onnxruntime", "torch"},
}


def _imports(source, module):
    """Every module that the source imports, wherever in it; `module` resolves relative ones."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import part` names the part only among the names.
            if base == PACKAGE:
                yield from (f"{base}.{alias.name}" for alias in node.names)
            else:
                yield base


def _violations(source, module):
    part = module.split(".")[1]
    assert part in INSIDE, f"{part} has no place among the layers"
    for name in _imports(source, module):
        top, *rest = name.split(".")
        if top == PACKAGE:
            # The package's own name gives the cell: an import of nnet.
            target = rest[0] if rest and rest[0] in INSIDE else "nnet"
            if target != part and target not in INSIDE[part]:
                yield f"{module} imports {name}"
        elif part in OUTSIDE and top not in OUTSIDE[part] and top not in sys.stdlib_module_names:
            yield f"{module} imports {name}"


def _modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts != ("__init__",):
            # A package's __init__ keeps its name, so that relative imports resolve as in a module.
            yield ".".join((PACKAGE, *parts)), path


@pytest.mark.parametrize("module, path", _modules(), ids=lambda value: str(value))
def test_imports_go_downward(module, path):
    assert not list(_violations(path.read_text(encoding="utf-8"), module))


@pytest.mark.parametrize(
    "module, source",
    (
        ("ops.means", "import speechbrain.nnet"),
        ("ops.means", "from summarymixing.nnet.cell import SummaryMixing"),
        ("ops.means", "from summarymixing import SummaryMixing"),
        ("ops.means", "from ..nnet import cell"),
        ("ops.means", "def f():\n    import numpy"),
        ("nnet.cell", "from speechbrain.nnet import attention"),
        ("nnet.cell", "from summarymixing.models import conformer"),
        ("nnet.cell", "from summarymixing import models"),
        ("models.conformer", "import summarymixing.decoding.searches"),
        ("models.conformer", "import numpy as np"),
        ("dataio.audio", "from summarymixing.training import config"),
        ("dataio.audio", "from ..models import features"),
        ("dataio.audio", "import summarymixing.scoring.metrics"),
        ("scoring.metrics", "from ..dataio import audio"),
        ("decoding.searches", "from summarymixing.training import brain"),
        ("training.brain", "from summarymixing.models.features import LogMel"),
        ("training.brain", "from summarymixing.nnet.cell import SummaryMixing"),
        ("training.brain", "from summarymixing.inference import load"),
        ("decoding.searches", "from summarymixing.inference import text"),
    ),
)
def test_the_check_sees(module, source):
    assert list(_violations(source, f"{PACKAGE}.{module}"))


@pytest.mark.parametrize(
    "module, source",
    (
        ("ops.means", "import math\nfrom torch.nn import functional"),
        ("ops.means", "from . import padding"),
        ("nnet.cell", "from summarymixing.ops import means\nfrom ..errors import InputError"),
        ("models.conformer", "from speechbrain.nnet import attention\nfrom . import mixers"),
        ("training.brain", "from summarymixing.training import curves\nimport numpy"),
    ),
)
def test_the_check_allows(module, source):
    assert not list(_violations(source, f"{PACKAGE}.{module}"))
