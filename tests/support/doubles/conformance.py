"""One suite per container contract; every implementation, fakes too, runs it.

Owns:    how an implementation joins.
Not:     the trials (builder_suite.py, instance_suite.py), what they build (scripts.py).
Entry:   BuilderSuite, InstanceSuite; Backend
Holds:   nothing about an engine, a file system or a process is assumed here; whatever
         differs between implementations is a method of Backend.
Source:  container/contracts.py; launch.md §9; needs.md rows 3, 8, 12

An implementation joins with a Backend and, per suite, four lines:

    class DockerBackend(Backend):
        async def open_builder(self, node_id): ...     # platforms=platform_for_scripts
        async def close_builder(self, builder): ...
        async def abandon(self, builder): ...
        async def owned(self, node_id): ...
        async def signal(self, instance, number): ...

    class TestDockerInstance(InstanceSuite):
        @pytest.fixture
        async def backend(self, tmp_path):
            async with DockerBackend(tmp_path) as backend:
                yield backend

`Backend` brings packages (scripts that need only /bin/sh), a TCP listener to call back
to, and attempts that remember what they were told. It closes what it opened. Set
`patience_s` to how long one build and start may take.
"""

from support.doubles.backend import Backend, CountingListener, WatchedAttempt
from support.doubles.builder_suite import BuilderSuite
from support.doubles.instance_suite import InstanceSuite
from support.doubles.scripts import platform_for_scripts

__all__ = [
    "Backend",
    "BuilderSuite",
    "CountingListener",
    "InstanceSuite",
    "WatchedAttempt",
    "platform_for_scripts",
]
