"""Make pages of the site from the Markdown files beside docs/, so that their links work in both places.

README.md, CONTRIBUTING.md, CHANGELOG.md and benchmarks/README.md link to files of the repository, as the page of a
repository shows them. In the site they stand beside the pages of docs/, and source files are no part of it: links to
pages and pictures get the site's paths, links to other files become plain text.

MkDocs calls `on_files` and `on_page_markdown` (https://www.mkdocs.org/dev-guide/plugins/#events). `rewrite_links` needs
no MkDocs.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # files outside docs/ and their places in the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
SOURCES = {page: path for path, page in PAGES.items()}

# Code comes first: what looks like a link in it is none.
LINKS = re.compile(
    r"""
      ^[ >]*(?P<fence>`{3,}|~{3,})[^\n]*\n.*?^[ >]*(?P=fence)[`~]*[ ]*$
    | (?<!`)(?P<ticks>`+)(?!`)(?:(?!\n\s*\n).)*?(?<!`)(?P=ticks)(?!`)
    | (?P<image>!?)\[(?P<text>(?:!\[[^\[\]]*\]\([^()]*\)|[^\[\]])*)\]\((?P<target>[^()\s]+)(?P<title>\s+"[^"]*")?\)
    | ^(?P<label>[ ]{0,3}\[(?!\^)[^\]\n]+\]:[ ]*)(?P<defined>\S+)
    | \b(?P<attribute>href|src|srcset)="(?P<value>[^"]+)"
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


def site_path(path: str) -> str | None:
    """Return a file's path in the site, or None if the site does not have the file.

    Args:
        path: Path from the top of the repository.
    """
    if path.startswith("docs/") and not path.endswith(".py"):
        return path.removeprefix("docs/")
    return PAGES.get(path)


def find_in_site(target: str, source: str) -> str | None:
    """Return a link's target as a page of the site has it, or None if the target is no part of the site.

    Args:
        target: Target of a link: a path from the file with the link, or from the top of the repository if it starts
            with a slash. Addresses of other sites and of sections of the same page are returned as they are.
        source: Path of the file with the link, from the top of the repository.

    Raises:
        ValueError: The target is no file of the repository.
    """
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//|#", target):
        return target
    path, mark, section = target.partition("#")
    path = posixpath.normpath(posixpath.join("/", posixpath.dirname(source), path)).lstrip("/")
    if path not in PAGES and not (ROOT / path).exists():
        raise ValueError(f"{source} links to {target}, but the repository has no file {path}")
    page = site_path(path)
    if page is None:
        return None
    here = posixpath.dirname(site_path(source) or "")
    return posixpath.relpath(page, here or ".") + mark + section


def rewrite_links(markdown: str, source: str) -> str:
    """Return Markdown with the links of a repository's file changed to links of the site's page.

    Links to files that the site does not have become their text, as code if the text is the file's path or name.
    Code blocks and code spans stay as they are.

    Args:
        markdown: Content of the file.
        source: Path of the file from the top of the repository.

    Raises:
        ValueError: A link names no file of the repository, or an image, an HTML attribute or a link definition
            names a file that the site does not have.
    """

    def require_in_site(target: str) -> str:
        found = find_in_site(target, source)
        if found is None:
            raise ValueError(f"{source} needs {target}, which is no part of the site; use [text](path) to name a file")
        return found

    def rewrite(match: re.Match[str]) -> str:
        if match["defined"]:
            return match["label"] + require_in_site(match["defined"])
        if match["attribute"]:
            return f'{match["attribute"]}="{require_in_site(match["value"])}"'
        if not match["target"]:
            return match[0]  # code
        text = rewrite_links(match["text"], source)  # may be an image
        target = find_in_site(match["target"], source) if not match["image"] else require_in_site(match["target"])
        if target is None:
            return f"`{text}`" if match["target"].rstrip("/").endswith(text.rstrip("/")) else text
        return f"{match['image']}[{text}]({target}{match['title'] or ''})"

    return LINKS.sub(rewrite, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from files outside docs/."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Rewrite the links of a page."""
    from mkdocs.exceptions import PluginError

    try:
        return rewrite_links(markdown, SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    except ValueError as error:
        raise PluginError(str(error)) from None
