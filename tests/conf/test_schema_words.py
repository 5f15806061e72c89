# SPDX-License-Identifier: LGPL-2.1-or-later
"""Errors in a host device are described in our own sentences, with the line of the wrong part."""

from __future__ import annotations

import pytest

from pyhostdev.conf.domain_schema import validate_schema

SOURCE = "<source><address domain='0' bus='1' slot='0' function='0'/></source>"
# of libxml2's validator; none of them may reach the user
FOREIGN = ("interleave", "failed to validate", "Expecting", "Did not expect", "extra content", "Invalid sequence")


@pytest.mark.parametrize(
    ("device", "line", "said"),
    [
        (f"<hostdev type='pci' asigned='no'>{SOURCE}</hostdev>", 2, "did you mean 'assigned'"),
        (f"<hostdev type='pci' managed='maybe'>{SOURCE}</hostdev>", 2, "'managed' of <hostdev> cannot be 'maybe'"),
        (f"<hostdev type='pci'>\n{SOURCE}\n<sorce/>\n</hostdev>", 4, "Unknown element <sorce>"),
        (f"<hostdev type='pci'>\n<driver name='vfio' modle='x'/>{SOURCE}</hostdev>", 3, "did you mean 'model'"),
        ("<hostdev type='pci'/>", 2, "<source>"),
        (f"<hostdev type='pci' assigned='no'>{SOURCE}<boot order='1'/></hostdev>", 2, "boot"),
        ("<hostdev type='tape'/>", 2, "tape"),
        ("<disk assigned='no'/>", 2, "<disk> cannot have 'assigned'"),
    ],
)
def test_sentences_are_our_own(device: str, line: int, said: str) -> None:
    """The unknown word, the wrong value and the missing part are named; the line is that of the part."""
    found = validate_schema(f"<devices>\n{device}\n</devices>")
    assert [line] == sorted({at for at, _ in found})
    assert any(said in text for _, text in found), found
    assert [] == [text for _, text in found for word in FOREIGN if word in text]


def test_what_only_the_grammar_refuses_is_found_by_leaving_it_out() -> None:
    """An element that the tables accept in any device, and the grammar in some, is named with the device."""
    found = validate_schema(f"<hostdev type='pci' managed='yes'>\n{SOURCE}\n<shareable/>\n</hostdev>")
    assert found
    assert [] == [text for _, text in found if "<" not in text or any(word in text for word in FOREIGN)]
