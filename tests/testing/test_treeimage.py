# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that is copied from an earlier one of the same process equals one that was built."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyhostdev.testing import hostbuild
from pyhostdev.testing.fakehost import FakeHost, named_hosts
from pyhostdev.testing.hostbuild import build_host
from pyhostdev.testing.treeimage import read_image, write_image
from pyhostdev.util.hostroot import HostRoot


@pytest.mark.parametrize("name", named_hosts())
def test_copied_host_equals_a_built_one(name: str, tmp_path: Path) -> None:
    """Files, links and the state of the kernel are the same; the second named host is a copy."""
    first, second = (FakeHost.named(name, tmp_path / place) for place in ("first", "second"))
    build_host(HostRoot(tmp_path / "built"), first.spec)
    built = read_image(str(tmp_path / "built"))
    assert built == read_image(str(first.root.path)) == read_image(str(second.root.path))


def test_hosts_with_dumps_are_built(tmp_path: Path) -> None:
    """A file of dump= may have changed since the first host of this description."""
    (tmp_path / "host.tree").write_text("0000:00:1f.0 8086:1521 020000 dump=a.dump\n")
    found = []
    for byte in (0, 1):
        (tmp_path / "a.dump.hex").write_text(f"00: 86 80 21 15 0{byte} 00 00 00\n")
        host = FakeHost.from_tree(tmp_path / "host.tree", tmp_path / f"host{byte}")
        found.append(Path(host.root.pci_device(next(iter(host.spec.functions))), "config").read_bytes()[4])
    assert [0, 1] == found


def test_few_copies_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest description is dropped; a description builds equal hosts before and after that."""
    monkeypatch.setattr(hostbuild, "_IMAGES", {})
    texts = [f"0000:00:{slot:02x}.0 8086:1521 020000\n" for slot in range(32)] + ["0000:01:00.0 8086:1521 020000\n"]
    hosts = [FakeHost.from_tree(text, tmp_path / str(number)) for number, text in enumerate(texts)]
    assert texts[1:] == list(hostbuild._IMAGES)
    assert hosts[0].snapshot() == FakeHost.from_tree(texts[0], tmp_path / "again").snapshot()


def test_copies_are_independent(tmp_path: Path) -> None:
    """A change of one host reaches neither another one nor a later copy."""
    first, second = (FakeHost.named("bcm5719", tmp_path / place) for place in ("first", "second"))
    before = second.snapshot()
    first.kernel.vanish(next(iter(first.spec.functions)))
    assert before == second.snapshot() == FakeHost.named("bcm5719", tmp_path / "third").snapshot()
    assert before != first.snapshot()


def test_directory_with_entries(tmp_path: Path) -> None:
    """A host is never copied over something else; a host beside other files is built."""
    FakeHost.named("bcm5719", tmp_path / "first")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "note").write_text("kept")
    host = FakeHost.named("bcm5719", tmp_path / "used")
    assert "kept" == (tmp_path / "used" / "note").read_text()
    with pytest.raises(FileExistsError):
        FakeHost.named("bcm5719", tmp_path / "used")
    with pytest.raises(FileExistsError):
        write_image(str(host.root.path), {})
    third = FakeHost.named("bcm5719", tmp_path / "third").snapshot()
    assert host.snapshot() == {**third, "note": b"kept"}
