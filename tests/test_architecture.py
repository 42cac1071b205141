"""The layout keeps its word: who imports whom, what is public, which private names of others are used."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil

import pytest
from conftest import ROOT

import gpt_lightning
from gpt_lightning.errors import InputError

# Each module may import those to its left.
LAYERS = [
    {"errors"},
    {"model", "loss", "windows", "tokenizer", "runs", "hardware", "layouts"},
    {"generation", "text", "plotting", "packing", "archive"},
    {"sources"},
    {"weights"},
    {"formats"},
    {"export"},
    {"documents", "explain", "completion"},
    {"corpus", "prompting"},
    {"data", "settings"},
    {"module"},
    {"callbacks", "report", "stopping", "verify"},
    {"checkpoint"},
    {"training"},
    {"check"},
    {"cli"},
    {"interface"},
    {"__main__", "look"},
]
WITHOUT_LIGHTNING = {
    "errors",
    "archive",
    "layouts",
    "sources",
    "weights",
    "formats",
    "export",
    "model",
    "loss",
    "windows",
    "tokenizer",
    "runs",
    "generation",
    "completion",
    "prompting",
    "packing",
    "text",
    "documents",
    "corpus",
    "explain",
    "verify",
    "plotting",
    "settings",
    "hardware",
    "__main__",
}
MODULES = sorted(module.name for module in pkgutil.iter_modules(gpt_lightning.__path__))


def imports(module: str) -> set[str]:
    """What a module imports anywhere in its code, in full."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "gpt_lightning" / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_its_layer() -> None:
    assert set().union(*LAYERS) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_in_one_direction(module: str) -> None:
    layer = next(i for i, names in enumerate(LAYERS) if module in names)
    below = set().union(*LAYERS[:layer])

    own = {name.split(".")[1] for name in imports(module) if name.startswith("gpt_lightning.")} & set(MODULES)

    assert own <= below


@pytest.mark.parametrize("module", sorted(WITHOUT_LIGHTNING))
def test_these_do_not_know_lightning(module: str) -> None:
    assert not any(name.split(".")[0] == "lightning" for name in imports(module))


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__main__"])
def test_everything_public_says_what_it_does(module: str) -> None:
    loaded = importlib.import_module(f"gpt_lightning.{module}")

    assert loaded.__doc__
    for name, item in vars(loaded).items():
        own = getattr(item, "__module__", None) == loaded.__name__ and not name.startswith("_")
        if own and (inspect.isclass(item) or inspect.isfunction(item)):
            assert item.__doc__, f"{module}.{name}"


def test_private_names_of_libraries_that_are_relied_on() -> None:
    """Where nothing public serves; each use is in one place."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch.cli import LightningCLI

    parser = ArgumentParser()
    parser.add_argument("--a.b", type=int)
    assert "a.b" in [action.dest for action in parser._actions]
    assert list(inspect.signature(LightningCLI._parse_ckpt_path).parameters) == ["self"]
    assert list(inspect.signature(LightningCLI._parser).parameters) == ["self", "subcommand"]
    source = "\n".join((ROOT / "gpt_lightning" / f"{module}.py").read_text() for module in MODULES)
    assert source.count("._actions") == 1


def test_input_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)
