# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Configure Sphinx: the site, and the man page from the same source.

``make docs`` builds both; warnings are errors. The page of verbs is written from the parsers of the command line.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "pyhostdev"
author = "the pyhostdev authors"
copyright = "2026, the pyhostdev authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
html_theme = "furo"
html_title = "pyhostdev"
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
napoleon_use_rtype = False
napoleon_custom_sections = [(name, "notes_style") for name in ("Units", "Host", "Mirrors", "Source", "Processes")]
man_pages = [("man", "pyhostdev", "give PCI host devices to virtual machines", author, 1)]


def write_verbs(app: Any) -> None:
    """Write the page of verbs before Sphinx looks for its sources."""
    from verbs import page

    target = HERE / "verbs.md"
    text = page()
    if not target.exists() or target.read_text() != text:
        target.write_text(text)


def setup(app: Any) -> None:
    """Register with Sphinx."""
    app.connect("builder-inited", write_verbs)
