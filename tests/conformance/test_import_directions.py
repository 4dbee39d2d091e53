"""The arrows of ARCHITECTURE.md, read from the source: who may import whom, and what nobody may."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = {
    "fl_shield": ROOT / "fl_shield",
    "fl_shield.strategies": ROOT / "strategies",
    "fl_shield.simulations": ROOT / "simulations",
}

# The order inside the core: a part imports its own row and the rows before it.
CORE_ROWS = (
    ("fl_shield", "types", "errors", "pretrained"),
    ("rng", "geometry", "live", "conditioning", "stages", "tensor_file"),
    ("leave_one_out", "frame", "standing", "columns"),
    ("profile", "training", "metrics", "suspects", "fingerprint"),
    ("pca", "calibration", "signature", "updates", "triggers"),
    ("head",),
    ("activations",),
    ("representation",),
    ("network", "attacks", "detectors", "aggregators", "probes"),
    ("meta",),
    ("weights",),
    ("detector",),
    ("witness", "judge"),
    ("judge_file",),
    ("inspector", "guard", "policy", "live_updates"),
    ("live_suspicion", "live_rules", "recollection"),
)
RANKS = {part: rank for rank, row in enumerate(CORE_ROWS) for part in row}
CORE_LIBRARIES = {"torch", "numpy", "scipy", "sklearn", "safetensors"}
AUDIT_LIBRARIES = {"sqlalchemy", "jinja2", "markupsafe", "matplotlib", "numpy"}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Modules that may seed and use the global generators, because Flower and torch do behind them.
HARNESS = {
    "fl_shield.simulations.arena.replay",
    "fl_shield.simulations.engines",
    "fl_shield.simulations.federation",
}
OWN_GENERATORS = {"default_rng", "Generator", "SeedSequence", "BitGenerator", "PCG64", "Philox"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "multinomial", "bernoulli"}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name: ``target`` is a module of ours or what was written."""

    target: str
    line: int
    at_load: bool
    for_types: bool


@dataclass(frozen=True, kw_only=True)
class Module:
    """One source file under the name by which it is imported."""

    name: str
    tree: ast.Module


def part_of(module: str) -> str:
    """Which room of the house: ``strategies``, ``audit``, ``meta``, ... or ``fl_shield`` itself."""
    return module.split(".")[1] if "." in module else module


def read_tree(prefix: str, folder: Path) -> Iterator[Module]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if prefix == "fl_shield" and parts[0] in ("strategies", "simulations"):
            continue  # rglob before Python 3.13 follows links
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        yield Module(name=".".join((prefix, *parts)), tree=ast.parse(path.read_text("utf-8")))


@cache
def modules() -> dict[str, Module]:
    found = [m for prefix, folder in TREES.items() for m in read_tree(prefix, folder)]
    assert len({m.name for m in found}) == len(found)
    return {m.name: m for m in found}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk(
    node: ast.AST, *, at_load: bool = True, for_types: bool = False
) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Every node below, with whether it runs when the module loads and only for type checkers."""
    for child in ast.iter_child_nodes(node):
        in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typed = for_types or (is_type_checking(node) and child in getattr(node, "body", ()))
        yield child, at_load and not in_function, typed
        yield from walk(child, at_load=at_load and not in_function, for_types=typed)


def imports_of(tree: ast.Module, known: frozenset[str]) -> Iterator[Import]:
    for node, at_load, for_types in walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            source = node.module or ""
            full = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in known else source for name in full]
        for name in names:
            yield Import(target=name, line=node.lineno, at_load=at_load, for_types=for_types)  # type: ignore[attr-defined]


@cache
def imports() -> dict[str, tuple[Import, ...]]:
    known = frozenset(modules())
    return {name: tuple(imports_of(m.tree, known)) for name, m in modules().items()}


def is_ours(target: str) -> bool:
    return target == "fl_shield" or target.startswith("fl_shield.")


def is_core(module: str) -> bool:
    return part_of(module) not in ("strategies", "simulations", "cli")


def edges() -> Iterator[tuple[str, Import]]:
    for name, found in imports().items():
        for item in found:
            yield name, item


def complaint(module: str, item: Import) -> str:
    return f"{module}:{item.line} imports {item.target}"


def test_the_three_trees_are_read() -> None:
    names = modules()
    assert {"fl_shield.types", "fl_shield.policy", "fl_shield.attacks", "fl_shield.cli"} <= set(
        names
    )
    assert {"fl_shield.strategies", "fl_shield.simulations.datasets"} <= set(names)
    assert any(item.target == "fl_shield.types" for item in imports()["fl_shield.policy"])


def test_names_are_imported_as_installed() -> None:
    bad = [
        complaint(m, i)
        for m, i in edges()
        if i.target.split(".")[0] in ("strategies", "simulations", "tests")
    ]
    assert bad == []


def test_our_imports_name_something_that_exists() -> None:
    bad = [complaint(m, i) for m, i in edges() if is_ours(i.target) and i.target not in modules()]
    assert bad == []


def test_core_never_looks_up() -> None:
    """Not even for types, and not even inside a function."""
    rooms = ("strategies", "simulations", "cli")
    bad = [
        complaint(m, i)
        for m, i in edges()
        if is_core(m) and is_ours(i.target) and part_of(i.target) in rooms
    ]
    assert bad == []


def test_core_brings_no_other_library() -> None:
    bad = []
    for name, item in edges():
        library = item.target.split(".")[0]
        if not is_core(name) or is_ours(item.target) or library in sys.stdlib_module_names:
            continue
        allowed = AUDIT_LIBRARIES if part_of(name) == "audit" else CORE_LIBRARIES
        if library not in allowed:
            bad.append(complaint(name, item))
    assert bad == []


def test_strategies_add_only_flower_and_never_import_simulations() -> None:
    bad = []
    for name, item in edges():
        library = item.target.split(".")[0]
        if part_of(name) != "strategies" or library in sys.stdlib_module_names:
            continue
        if is_ours(item.target):
            if part_of(item.target) in ("simulations", "cli"):
                bad.append(complaint(name, item))
        elif library not in CORE_LIBRARIES | {"flwr"}:
            bad.append(complaint(name, item))
    assert bad == []


def test_nothing_imports_the_command_line() -> None:
    bad = [
        complaint(m, i)
        for m, i in edges()
        if is_ours(i.target) and part_of(i.target) == "cli" and part_of(m) != "cli"
    ]
    assert bad == []


def test_audit_needs_only_types_and_errors() -> None:
    bad = [
        complaint(m, i)
        for m, i in edges()
        if part_of(m) == "audit"
        and is_ours(i.target)
        and part_of(i.target) not in ("audit", "types", "errors")
    ]
    assert bad == []


def test_every_part_of_the_core_has_its_row() -> None:
    parts = {part_of(m) for m in modules() if is_core(m)} - {"audit"}
    assert parts <= set(RANKS), "a new part of the core: give it a row in CORE_ROWS and a reason"


def test_core_arrows_run_one_way() -> None:
    bad = [
        complaint(m, i)
        for m, i in edges()
        if not i.for_types
        and part_of(m) in RANKS
        and is_ours(i.target)
        and RANKS.get(part_of(i.target), 99) > RANKS[part_of(m)]
    ]
    assert bad == []


def test_nothing_is_imported_in_a_circle() -> None:
    graph = {
        name: {i.target for i in found if i.at_load and not i.for_types and i.target in modules()}
        for name, found in imports().items()
    }
    assert sum(map(len, graph.values())) > 20
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imported in a circle: {' <- '.join(error.args[1])}")


# What no file may do, whoever imports it ---------------------------------------------------------


def aliases_of(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: ``np`` -> ``numpy``, ``load`` -> ``torch.load``."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    """Full name of what is called, such as ``numpy.random.seed``; empty for what has none."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, aliases)
        return f"{owner}.{node.attr}" if owner else ""
    return aliases.get(node.id, "") if isinstance(node, ast.Name) else ""


def unpickling(tree: ast.Module) -> Iterator[str]:
    """What in a file could run a stranger's code while it reads data."""
    aliases = aliases_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            sources = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            )
            yield from (
                f"line {node.lineno}: {s}" for s in sources if str(s).split(".")[0] in UNPICKLERS
            )
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, aliases)
        if name in ("torch.load", "torch.serialization.load", "pandas.read_pickle"):
            yield f"line {node.lineno}: {name}"
        for keyword in node.keywords:
            constant = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "allow_pickle" and not constant:
                yield f"line {node.lineno}: allow_pickle"


def is_global_draw(call: ast.Call, name: str) -> bool:
    owner, _, last = name.rpartition(".")
    if owner == "random":
        return last not in ("Random", "SystemRandom")
    if owner == "numpy.random":
        return last not in OWN_GENERATORS
    if owner == "torch":
        return last in TORCH_DRAWS and not any(k.arg == "generator" for k in call.keywords)
    return False


def is_global_seed(name: str) -> bool:
    return name.startswith("torch.") and name.rpartition(".")[2] in (
        "manual_seed",
        "manual_seed_all",
        "set_rng_state",
    )


def global_chance(tree: ast.Module) -> Iterator[str]:
    """Draws from global generators, and seeds of torch's outside ``fork_rng``."""
    aliases = aliases_of(tree)
    forked: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and any(
            "fork_rng" in ast.unparse(item.context_expr) for item in node.items
        ):
            forked.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = dotted(node.func, aliases)
            seeded = is_global_seed(name) and node not in forked
            if is_global_draw(node, name) or seeded:
                yield f"line {node.lineno}: {name}"


def test_nothing_is_unpickled() -> None:
    bad = [f"{m.name} {found}" for m in modules().values() for found in unpickling(m.tree)]
    assert bad == []


def test_global_generators_belong_to_the_harness() -> None:
    bad = [
        f"{m.name} {found}"
        for m in modules().values()
        if m.name not in HARNESS
        for found in global_chance(m.tree)
    ]
    assert bad == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "import cloudpickle as c",
        "import torch\ntorch.load('x')",
        "from torch import load as read\nread('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nnp.load('x', allow_pickle=flag)",
    ],
)
def test_the_search_for_unpickling_finds(source: str) -> None:
    assert list(unpickling(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import random\nrandom.seed(0)",
        "from random import shuffle\nshuffle([])",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy\nnumpy.random.rand(3)",
        "from numpy import random\nrandom.choice(3)",
        "import torch\ntorch.manual_seed(0)",
        "import torch\ntorch.cuda.manual_seed_all(0)",
        "import torch\ntorch.randn(3)",
    ],
)
def test_the_search_for_global_chance_finds(source: str) -> None:
    assert list(global_chance(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.random.default_rng(0).choice(3)",
        "import torch\ntorch.randn(3, generator=g)",
        "import torch\ng = torch.Generator()\ng.manual_seed(0)",
        "import torch\nwith torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import safetensors.torch\nsafetensors.torch.load(b'')",
    ],
)
def test_the_searches_let_pass(source: str) -> None:
    tree = ast.parse(source)
    assert [*global_chance(tree), *unpickling(tree)] == []


def test_imports_for_types_and_inside_functions_are_told_apart() -> None:
    source = """
import a
if TYPE_CHECKING:
    import b
else:
    import c
def f() -> None:
    import d
class C:
    import e
"""
    found = {i.target: (i.at_load, i.for_types) for i in imports_of(ast.parse(source), frozenset())}
    assert found == {
        "a": (True, False),
        "b": (True, True),
        "c": (True, False),
        "d": (False, False),
        "e": (True, False),
    }
