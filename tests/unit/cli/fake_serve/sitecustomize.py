"""Puts a node in memory where `chaindock up` looks for the real one.

Python imports this by itself when its directory is on PYTHONPATH. The domain stands for
a fault: `dies.example` ends without a word, `refuses.example` raises, `stays.example`
does not stop when asked, `never.example` is never ready, `forgets.example` keeps
no state, `imageless.example` has an engine without images.
"""

import sys
import types
from typing import Any


async def _serve(config: Any, ready: Any) -> None:
    import asyncio
    import os

    from chaindock.errors import NodeAlreadyRunning
    from chaindock.node.home import Home
    from support.doubles.fake_node import serve

    fault = config.node.domain.partition(".")[0]
    if fault == "dies":
        print("something went wrong before it could be told", flush=True)
        os._exit(7)
    if fault == "refuses":
        raise NodeAlreadyRunning("home is served by process 1", hint="chaindock down")
    if fault == "never":
        print("never ready", flush=True)
        await asyncio.Event().wait()
    faults = {name: fault == name for name in ("forgets", "imageless")}
    await serve(config.home, ready, **faults)
    if fault == "stays":
        with Home(config.home).locked():
            await asyncio.Event().wait()


_module = types.ModuleType("chaindock.node.serve")
_module.serve = _serve  # type: ignore[attr-defined]
sys.modules[_module.__name__] = _module
