"""Podman's API service of a user without rights, with a storage of its own.

Two things are set that Podman does not have by itself. The storage driver: of the kernel's
own overlays, which Podman 4.3 takes for a user only when told so. And that containers may
connect to what listens on loopback, as docs/tasks/containers.md tells users to set.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from support.engines.own_engine import OwnEngine, running
from support.engines.slots import end_processes, slot
from support.engines.unprivileged import User, need_unprivileged
from support.need import missing, need, need_image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.engines.slots import Pool

_SETTINGS = """\
[engine]
network_cmd_options = ["allow_host_loopback=true"]
"""
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


class RootlessPodman(OwnEngine):
    """One of them, where a node of that user looks for it.

    Args:
        sees: more folders that the user may enter (unprivileged.py).
    """

    kind = "rootless podman"

    def __init__(self, folder: Path, pool: Pool, *sees: Path) -> None:
        super().__init__(folder, pool)
        self.user = User(pool.ids, folder, sees)
        self.user.prepare()
        self.socket = self.user.run / "podman/podman.sock"
        self.user.give(self.socket.parent)
        settings = self.user.home / ".config/containers/containers.conf"
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(_SETTINGS)

    def command(self) -> list[str]:
        """A service in the environment of its user, and nothing else."""
        variables = {**self.user.env, "PATH": PATH, "STORAGE_DRIVER": "overlay"}
        clean = ["env", "-i", *(f"{key}={value}" for key, value in variables.items())]
        serve = ["podman", "system", "service", "--time=0", self.endpoint]
        return self.user.argv(*clean, *serve)

    def clear_dead(self) -> None:
        """Remove the socket."""
        self.socket.unlink(missing_ok=True)

    def _clear(self) -> None:
        # Copying images into it takes long, and what was built may serve the next run.
        tags = [
            tag for one in self.get("/images/json") for tag in one["RepoTags"] or []
        ]
        kept = [tag for tag in tags if "chaindock-test/" in tag]
        self.loaded += [tag.removeprefix("localhost/") for tag in kept]
        super()._clear()

    def remove(self) -> None:
        """As every engine; what its user has at run time goes, as with a last logout."""
        super().remove()
        end_processes(self.folder, self.pool.ids)
        shutil.rmtree(self.user.run, ignore_errors=True)


@contextlib.contextmanager
def rootless_podman(
    *names: str, sees: tuple[Path, ...] = ()
) -> Iterator[RootlessPodman]:
    """Start one, with base images (`runtime`, `python` …) on it."""
    need("podman", "runc", "catatonit", "slirp4netns")
    need_unprivileged()
    if not Path("/usr/lib/podman/netavark").exists():
        missing("netavark is not installed (Podman's networks)")
    images = [need_image(name) for name in names]
    with slot("user") as (folder, pool):
        yield from running(RootlessPodman(folder, pool, *sees), images)
