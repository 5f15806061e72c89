# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The words of findings, plans and steps as types.

Only annotations and programs of users import this module, so that no verb loads typing for it.
"""

from __future__ import annotations

from typing import Literal

Severity = Literal["error", "consent", "note"]
Role = Literal["assigned", "unassigned"]
Action = Literal["load-module", "detach", "keep", "reset", "reattach"]
