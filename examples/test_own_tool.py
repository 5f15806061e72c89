# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How another project tests its own tool without hardware: run this file with pytest.

Installing pyhostdev registers a pytest plugin; its fixture ``fakehost`` builds simulated hosts.
"""

from __future__ import annotations

import pyhostdev

DOMAIN = """
<domain type='qemu'>
  <name>vm1</name><memory>524288</memory><os><type>hvm</type></os>
  <devices>{hostdevs}</devices>
</domain>
"""
HOSTDEV = """
<hostdev mode='subsystem' type='pci' managed='yes' assigned='{assigned}'>
  <source><address domain='1' bus='9' slot='0' function='{function}'/></source>
</hostdev>
"""


def domain(**functions: str) -> pyhostdev.DomainDef:
    """Return a domain with these functions of the card: function0='yes', function1='no', ..."""
    parts = [HOSTDEV.format(function=name[-1], assigned=value) for name, value in functions.items()]
    return pyhostdev.DomainDef.parse(DOMAIN.format(hostdevs="".join(parts)))


def test_the_tool_refuses_half_a_card(fakehost):
    """Two of four functions are declared: the plan names the other two, and nothing changes."""
    fake = fakehost("bcm5719")
    before = fake.snapshot()
    plan = pyhostdev.Host(fake.root, writer=fake.kernel).plan(domain(function0="yes", function3="yes"))
    missing = {str(finding.address) for finding in plan.findings if finding.reason == "incomplete-device"}
    assert {"0001:09:00.1", "0001:09:00.2"} == missing
    assert before == fake.snapshot()


def test_the_tool_gives_everything_back(fakehost):
    """All four are declared, two are kept from the guest: prepared, then restored."""
    fake = fakehost("bcm5719")
    before = fake.snapshot()
    host = pyhostdev.Host(fake.root, writer=fake.kernel)
    wanted = domain(function0="yes", function1="no", function2="no", function3="yes")
    with pyhostdev.HostdevManager(host).prepared(host.plan(wanted)):
        assert {"vfio-pci"} == {dev.driver for dev in host.scan().groups[14]}
    assert before == fake.snapshot()
