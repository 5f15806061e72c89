# SPDX-License-Identifier: LGPL-2.1-or-later
"""A foreign project uses the pytest plugin: its own directory, settings and tests, and the installed package."""

from __future__ import annotations

import pytest

TESTS = """
    import pyhostdev

    def test_one(fakehost):
        fake = fakehost("bcm5719")
        assert 8 == len(pyhostdev.Host(fake.root).scan())

    def test_each_host_has_its_own_directory(fakehost):
        first, second = fakehost("sriov"), fakehost("driver x\\n0000:00:01.0 1234:5678 020000 driver=x group=3\\n")
        assert first.root.path != second.root.path
        assert [3] == list(pyhostdev.Host(second.root).scan().groups)

    class Test:
        def test_prepared(self, fakehost, tmp_path):
            fake = fakehost("nic-own-groups")
            assert fake.root.path.startswith(str(tmp_path))
"""


def test_foreign_project(pytester: pytest.Pytester) -> None:
    """The fixture works under strict settings, in plain functions and in classes."""
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\naddopts = "--strict-markers --strict-config"\nfilterwarnings = ["error"]\n'
    )
    pytester.makepyfile(test_foreign=TESTS)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)


def test_a_project_that_does_not_use_it(pytester: pytest.Pytester) -> None:
    """The plugin imports nothing of pyhostdev beyond itself while no test requests a host."""
    pytester.makepyfile(
        """
        import sys

        def test_other():
            assert not [name for name in sys.modules if name.startswith("pyhostdev.") and "plugin" not in name
                        and name != "pyhostdev.testing"]
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_listed_by_pytest(pytester: pytest.Pytester) -> None:
    """pytest --fixtures shows the fixture with its description."""
    done = pytester.runpytest_subprocess("--fixtures")
    done.stdout.fnmatch_lines(["*fakehost*", "*Build fake hosts*"])
