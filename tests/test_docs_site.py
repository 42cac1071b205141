"""The links of the site's pages, rewritten without MkDocs."""

from __future__ import annotations

import pytest
from conftest import ROOT
from scripts import load_script

HOOKS = load_script("hooks")


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[API](docs/api.md)", "[API](api.md)"),
        ("[API](docs/api.md#errors)", "[API](api.md#errors)"),
        ("[API](/docs/api.md)", "[API](api.md)"),
        ("[errors of\nthe API](docs/api.md)", "[errors of\nthe API](api.md)"),
        ('[API](docs/api.md "all of it")', '[API](api.md "all of it")'),
        ("![The loss](docs/loss.png)", "![The loss](loss.png)"),
        ("[![The loss](docs/loss.png)](docs/api.md)", "[![The loss](loss.png)](api.md)"),
        ('<img src="docs/loss.png" alt="">', '<img src="loss.png" alt="">'),
        ('<source srcset="docs/loss.png">', '<source srcset="loss.png">'),
        ("[API]: docs/api.md", "[API]: api.md"),
        ("[numbers](benchmarks/README.md)", "[numbers](benchmarks.md)"),
        (
            "[Contributing](CONTRIBUTING.md), [news](CHANGELOG.md)",
            "[Contributing](contributing.md), [news](changelog.md)",
        ),
    ],
)
def test_pages_and_pictures_are_linked_where_the_site_has_them(markdown: str, expected: str) -> None:
    assert HOOKS.rewrite_links(markdown, "README.md") == expected


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[configs/debug.yaml](configs/debug.yaml)", "`configs/debug.yaml`"),
        ("[debug.yaml](configs/debug.yaml)", "`debug.yaml`"),
        ("[`debug.yaml`](configs/debug.yaml)", "`debug.yaml`"),
        ("[the MIT license](LICENSE)", "the MIT license"),
        ("[configs](configs/)", "`configs`"),
        ("[docs/hooks.py](docs/hooks.py)", "`docs/hooks.py`"),
    ],
)
def test_a_link_to_another_file_becomes_its_text(markdown: str, expected: str) -> None:
    assert HOOKS.rewrite_links(markdown, "README.md") == expected


@pytest.mark.parametrize(
    "markdown",
    [
        '[torch](https://pytorch.org/docs/), <a href="https://pytorch.org">torch</a>',
        "[mail](mailto:someone@example.org)",
        "[above](#quick-start)",
        "As in the book.[^1]\n\n[^1]: Section 5.3.",
        "`[API](docs/api.md)` and ``a ` [API](docs/api.md)``",
        "```markdown\n[API](docs/api.md)\n```",
        "1. as\n\n   ~~~\n   [API](docs/api.md)\n   ~~~\n",
        "logits[0](no link), tensor [1] (B, T)",
    ],
)
def test_other_sites_and_code_stay_as_they_are(markdown: str) -> None:
    assert HOOKS.rewrite_links(markdown, "README.md") == markdown


def test_links_after_code_are_rewritten() -> None:
    markdown = "`a`, a lone ` and [API](docs/api.md)\n\n```bash\npytest\n```\n\n[API](docs/api.md)\n"

    assert HOOKS.rewrite_links(markdown, "README.md") == markdown.replace("docs/", "")


def test_links_start_from_the_folder_of_their_file() -> None:
    assert HOOKS.rewrite_links("[API](api.md)", "docs/data.md") == "[API](api.md)"
    assert HOOKS.rewrite_links("[home](../README.md#sampling)", "docs/data.md") == "[home](index.md#sampling)"
    assert HOOKS.rewrite_links("[debug.yaml](../configs/debug.yaml)", "docs/data.md") == "`debug.yaml`"
    assert HOOKS.rewrite_links("[API](../docs/api.md)", "benchmarks/README.md") == "[API](api.md)"
    assert HOOKS.rewrite_links("[home](../README.md)", "benchmarks/README.md") == "[home](index.md)"
    assert HOOKS.rewrite_links("[peers.py](peers.py)", "benchmarks/README.md") == "`peers.py`"


def test_a_link_to_no_file_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"README.md links to docs/none.md, but the repository has no file docs/none.md"
    ):
        HOOKS.rewrite_links("[none](docs/none.md)", "README.md")


@pytest.mark.parametrize("markdown", ["![](LICENSE)", '<a href="LICENSE">MIT</a>', "[MIT]: LICENSE"])
def test_what_cannot_become_text_must_be_in_the_site(markdown: str) -> None:
    with pytest.raises(ValueError, match=r"README.md needs LICENSE, which is no part of the site"):
        HOOKS.rewrite_links(markdown, "README.md")


def test_the_readmes_links_are_files() -> None:
    assert "](docs/" not in HOOKS.rewrite_links((ROOT / "README.md").read_text(), "README.md")
