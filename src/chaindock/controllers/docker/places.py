"""Where things lie in a build container.

Owns:    the paths inside our build containers, as values of a plan's placeholders.
Not:     filling placeholders (platforms/placeholders.py).
Entry:   build_places
Source:  launch.md §3.2
"""

from __future__ import annotations

from chaindock.platforms.placeholders import Places

INPUT, OUTPUT = "/chaincode/input", "/chaincode/output"
CACHE, HOME = "/chaincode/cache", "/chaincode/home"
CA_BUNDLE = "/chaincode/ca.pem"


def build_places() -> Places:
    """Return the places of a build container; programs are on its PATH."""
    known = {"input": INPUT, "output": OUTPUT}
    return Places(known, tool=str, cache=f"{CACHE}/{{}}".format)
