"""What docs/documents.md points to exists."""

from __future__ import annotations

import importlib
import re

from conftest import ROOT

PAGE = (ROOT / "docs" / "documents.md").read_text()
HERE = [row.split("|")[2] for row in PAGE.splitlines() if row.startswith("| ") and "---" not in row]


def test_every_name_in_the_table_exists() -> None:
    names = [name for cell in HERE for name in re.findall(r"`([a-z]+(?:\.[A-Za-z_]+)+)`", cell)]
    names = [name for name in names if not name.endswith((".pdf", ".png"))]
    modules = {path.stem for path in (ROOT / "gpt_lightning").glob("*.py")}

    ours = [name for name in names if name.split(".")[0] in modules - {"model", "data"} or re.search(r"\.[A-Z]", name)]
    assert len(ours) > 20
    for name in ours:
        found = importlib.import_module(f"gpt_lightning.{name.split('.')[0]}")
        for part in name.split(".")[1:]:
            found = getattr(found, part)


def test_every_file_in_the_table_exists() -> None:
    paths = re.findall(r"`((?:configs|tests)/[\w*./]+)`", PAGE)

    assert len(paths) > 8
    for path in paths:
        assert list(ROOT.glob(path)), path
