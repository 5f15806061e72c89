# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The actions of a domain when its guest powers off, reboots or crashes; this module does not need the monitor's library.
"""

from __future__ import annotations

from typing import Protocol

from pyhostdev.errors import ConfigUnsupportedError

ON_POWEROFF = "on_poweroff"
ON_REBOOT = "on_reboot"
ON_CRASH = "on_crash"

DEFAULT_ACTIONS = {ON_POWEROFF: "destroy", ON_REBOOT: "restart", ON_CRASH: "destroy"}
KNOWN_ACTIONS = ("destroy", "restart", "preserve")


class Lifecycle(Protocol):
    """A domain's actions; a DomainDef has them."""

    @property
    def on_poweroff(self) -> str | None:
        """Return the action for a guest that powers off."""

    @property
    def on_reboot(self) -> str | None:
        """Return the action for a guest that reboots."""

    @property
    def on_crash(self) -> str | None:
        """Return the action for a guest that crashes."""


def lifecycle_actions(dom: Lifecycle) -> dict[str, str]:
    """
    Return the domain's action for each lifecycle event, with libvirt's defaults.

    Raises:
        ConfigUnsupportedError: an action that is not supported for a guest in the foreground, such as a core dump.
    """
    actions = {key: getattr(dom, key) or default for key, default in DEFAULT_ACTIONS.items()}
    for key, action in actions.items():
        if action not in KNOWN_ACTIONS:
            raise ConfigUnsupportedError(f"The action '{action}' of '{key}' is not supported")
    return actions
