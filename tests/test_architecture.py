"""The layout of the package: imports, docstrings, and private names of libraries."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil

import pytest
from conftest import ROOT

import gpt_lightning
from gpt_lightning.errors import InputError

PACKAGES = {module.name for module in pkgutil.walk_packages(gpt_lightning.__path__, "gpt_lightning.") if module.ispkg}
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(gpt_lightning.__path__, "gpt_lightning.") if not module.ispkg
)


def source(module: str) -> str:
    return (ROOT / f"{module.replace('.', '/')}.py").read_text()


def imports(module: str) -> set[str]:
    """Return the modules that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found


# Layers: a module may import its own room (subpackage) and the rooms in lines above.
ROOMS = (
    ("__init__",),
    ("console",),
    ("errors",),
    ("validation", "files"),
    ("models", "data", "runs"),
    ("checkpoints",),
    ("inference",),
    ("evaluation",),
    ("training",),
    ("cli",),
    ("api", "__main__"),
)
LIGHTNING = ("gpt_lightning.data.datamodule", "gpt_lightning.training.", "gpt_lightning.cli.lightning_cli")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_imports_go_downward_only() -> None:
    floor = {name: number for number, names in enumerate(ROOMS) for name in names}

    upward = [
        (module, other)
        for module in MODULES
        for other in imports(module)
        if other.split(".")[0] == "gpt_lightning"
        and room(other) != room(module)
        and floor[room(other)] >= floor[room(module)]
    ]
    assert upward == []


def test_imports_have_no_cycle() -> None:
    done: set[str] = set()
    while ready := {name for name in MODULES if name not in done and imports(name) & set(MODULES) <= done}:
        done |= ready

    assert done == set(MODULES)


def test_package_init_files_are_empty() -> None:
    assert sorted(PACKAGES)
    assert all(not source(f"{name}.__init__") for name in PACKAGES)


def test_lightning_is_imported_only_by_training_and_its_cli() -> None:
    users = {name for name in MODULES if any(one.split(".")[0] == "lightning" for one in imports(name))}

    assert users
    assert all(name.startswith(LIGHTNING) for name in users)


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_public_names_have_docstrings(module: str) -> None:
    loaded = importlib.import_module(module)

    assert loaded.__doc__
    for name, item in vars(loaded).items():
        own = getattr(item, "__module__", None) == loaded.__name__ and not name.startswith("_")
        if own and (inspect.isclass(item) or inspect.isfunction(item)):
            assert item.__doc__, f"{module}.{name}"


def test_private_names_of_libraries_exist_and_are_used_in_one_place() -> None:
    """Private names are used only if a library has no public one."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningCLI

    parser = ArgumentParser()
    parser.add_argument("--a.b", type=int)
    assert "a.b" in [action.dest for action in parser._actions]
    assert list(inspect.signature(LightningCLI._parse_ckpt_path).parameters) == ["self"]
    assert list(inspect.signature(LightningCLI._parser).parameters) == ["self", "subcommand"]
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer._default_root_dir = "a_run"  # type: ignore[attr-defined]
    assert trainer.default_root_dir == "a_run"
    for name in ("._actions", "._default_root_dir", "._parser("):
        assert sum(source(module).count(name) for module in MODULES) == 1


def test_input_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)
