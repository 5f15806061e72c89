# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Launch security: encrypted guests.

Mirrors: virDomainSecDef (src/conf/domain_conf.h)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyhostdev.conf.xml.xmlcodec import enum, number, unsigned, yes_no
from pyhostdev.conf.xml.xmldef import ElementDef
from pyhostdev.conf.xml.xmlfield import attribute, content, flag
from pyhostdev.errors import XMLError
from pyhostdev.util.virxml import ULLONG_MAX

if TYPE_CHECKING:
    from pyhostdev.util.virxml import Element


class LaunchSecurityDef(ElementDef):
    """Launch security; not supported by ``start``."""

    tag = "launchSecurity"

    type = attribute(
        "type", enum("sev", "s390-pv", since={"sev-snp": "launch-snp", "tdx": "launch-tdx"}), required=True
    )
    kernel_hashes = attribute("kernelHashes", yes_no)
    author_key = attribute("authorKey", yes_no)
    vcek = attribute("vcek", yes_no)
    cbitpos = content("cbitpos", number)
    reduced_phys_bits = content("reducedPhysBits", number)
    policy = content("policy", unsigned(0, maximum=ULLONG_MAX))
    dh_cert = content("dhCert")
    session = content("session")
    guest_visible_workarounds = content("guestVisibleWorkarounds")
    id_block = content("idBlock")
    id_auth = content("idAuth")
    host_data = content("hostData")
    mr_config_id = content("mrConfigId")
    mr_owner = content("mrOwner")
    mr_owner_config = content("mrOwnerConfig")
    quote_service = flag("quoteGenerationService")
    quote_service_path = attribute("quoteGenerationService/@path")

    def parsed(self, element: Element) -> None:
        """Refuse SEV without a policy."""
        if self.type == "sev" and self.policy is None:
            raise XMLError("<launchSecurity type='sev'> lacks <policy>", line=self.line)
