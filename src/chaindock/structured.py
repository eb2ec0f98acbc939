"""structlog without rich, which it imports for a form of tracebacks that is not used here.

A node takes 5 MB less memory so, and starts 30 ms sooner.
"""

from __future__ import annotations

import sys

__all__ = ["structlog"]

_ABSENT = "rich" not in sys.modules
if _ABSENT:
    sys.modules["rich"] = None  # type: ignore[assignment]  # an import fails
try:
    import structlog
finally:
    if _ABSENT:
        del sys.modules["rich"]
