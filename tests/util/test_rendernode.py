# SPDX-License-Identifier: LGPL-2.1-or-later
"""The render node that a guest draws with if its definition names none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhostdev import DomainDef, Host, HostRoot
from pyhostdev.qemu import build_command_line
from pyhostdev.qemu.qemu_process.access import needed_files
from pyhostdev.util.rendernode import first_render_node

DOMAIN = (
    "<domain type='qemu'><name>vm</name><memory unit='MiB'>128</memory><os><type arch='x86_64' machine='q35'>hvm</type>"
    "</os><devices>{}</devices></domain>"
)
SPICE = "<graphics type='spice' port='5901'><gl enable='{}'{}/></graphics>"


def nodes(top: Path, *names: str) -> HostRoot:
    """Return a root with files in dev/dri."""
    (top / "dev/dri").mkdir(parents=True)
    for name in names:
        (top / "dev/dri" / name).touch()
    return HostRoot(str(top))


def test_the_lowest_render_node_is_the_first(tmp_path: Path) -> None:
    """By number, and never the node of a card; without a directory there is none."""
    assert first_render_node(HostRoot(str(tmp_path))) is None
    assert "/dev/dri/renderD99" == first_render_node(nodes(tmp_path, "renderD128", "renderD99", "card0", "renderDX"))


@pytest.mark.parametrize(
    ("graphics", "expected"),
    [
        (SPICE.format("yes", ""), "gl=on,rendernode=/dev/dri/renderD128,"),
        (SPICE.format("yes", " rendernode='/dev/dri/renderD130'"), "gl=on,rendernode=/dev/dri/renderD130,"),
        (SPICE.format("no", ""), "disable-ticketing=on,seamless"),
        ("<graphics type='egl-headless'/>", "egl-headless,rendernode=/dev/dri/renderD128"),
    ],
    ids=["chosen", "named", "without-gl", "egl-headless"],
)
def test_a_render_node_is_chosen_where_none_is_named(tmp_path: Path, graphics: str, expected: str) -> None:
    """Only for a guest that draws with OpenGL, and QEMU's user must be able to open what was chosen."""
    root = nodes(tmp_path, "renderD128", "renderD129")
    dom = DomainDef.parse(DOMAIN.format(graphics))
    argv = build_command_line(dom, host=Host(root))
    assert expected in " ".join(argv)
    found = {file.path for file in needed_files(dom, root) if "render node" in file.what}
    assert found == {word.split("=")[1] for word in ",".join(argv).split(",") if word.startswith("rendernode=")}


def test_qemu_chooses_on_a_host_without_nodes(tmp_path: Path) -> None:
    """A description of a host need not have dev/dri."""
    dom = DomainDef.parse(DOMAIN.format("<graphics type='egl-headless'/>"))
    argv = build_command_line(dom, host=Host(HostRoot(str(tmp_path))))
    assert "egl-headless" == argv[argv.index("-display") + 1]
    assert [] == [file for file in needed_files(dom, HostRoot(str(tmp_path))) if "render node" in file.what]
