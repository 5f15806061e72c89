# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python -m pyhostdev`` is the command line."""

import sys

from pyhostdev.tools.main import main

sys.exit(main())
