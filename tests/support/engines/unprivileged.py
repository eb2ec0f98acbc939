"""A user without rights, made for one test: nothing on this machine changes.

What it runs sees the files of the machine with a few others in their place (a private
mount namespace): user and group files that name it, with ranges of subordinate ids, and
a `/dev/net/tun` that everybody may open, as most machines have it. Of a folder that is
closed to others, such as the home of root, it sees what it was given and nothing else.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from support.need import missing, need

NAME = "chaindock-test"
ETC = ("passwd", "group", "subuid", "subgid")
TUN = "/dev/net/tun"


@dataclass(frozen=True)
class User:
    """One of them.

    Args:
        ids: its user and group id is the first; the second half is subordinate to it.
        folder: of its own, for `home` and what else a test makes there.
        sees: folders that it may enter wherever they are.
    """

    ids: range
    folder: Path
    sees: tuple[Path, ...] = ()

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def run(self) -> Path:
        """Its XDG_RUNTIME_DIR. Podman cleans nothing up below one with a long name."""
        return Path(f"/tmp/cd-{self.ids[0]}")

    @property
    def env(self) -> dict[str, str]:
        """The variables that name these."""
        return {"HOME": str(self.home), "USER": NAME, "XDG_RUNTIME_DIR": str(self.run)}

    def prepare(self) -> None:
        """Make its folders and the files that name it. Needs root."""
        uid, (low, count) = (
            self.ids[0],
            (self.ids[len(self.ids) // 2], len(self.ids) // 2),
        )
        shutil.rmtree(self.run, ignore_errors=True)  # of a test run that was killed
        for folder in (self.home, self.run):
            self.give(folder)
        etc = self.folder / "etc"
        etc.mkdir(exist_ok=True)
        lines = {
            "passwd": f"{NAME}:x:{uid}:{uid}::{self.home}:/bin/sh\n",
            "group": f"{NAME}:x:{uid}:\n",
            "subuid": f"{NAME}:{low}:{count}\n",
            "subgid": f"{NAME}:{low}:{count}\n",
        }
        for name, line in lines.items():
            there = (Path("/etc") / name).read_text()
            (etc / name).write_text(f"{there.rstrip()}\n{line}".lstrip())

    def give(self, folder: Path) -> Path:
        """Make a folder that is the user's."""
        folder.mkdir(mode=0o700, exist_ok=True)
        os.chown(folder, self.ids[0], self.ids[0])
        return folder

    def argv(self, *command: str | Path) -> list[str]:
        """Return what runs a command as this user; for root."""
        number = str(self.ids[0])
        drop = ["setpriv", "--reuid", number, "--regid", number, "--clear-groups"]
        run = shlex.join(["exec", *drop, "--inh-caps=-all", "--", *map(str, command)])
        script = "\n".join(["set -e", *self._view(), run])
        private = ("unshare", "--mount", "--propagation", "private")
        return [*private, "sh", "-c", script]

    def _view(self) -> list[str]:
        lines = [
            f"mount -t tmpfs -o mode=755 {NAME} /dev/net",
            f"mknod -m 666 {TUN} c 10 200",
            *(f"mount --bind {self.folder}/etc/{one} /etc/{one}" for one in ETC),
        ]
        closed: dict[Path, list[Path]] = {}
        for place in (self.folder, *self.sees):
            if (first := _closed_above(place)) is not None:
                closed.setdefault(first, []).append(place)
        stage = "/dev/net/stage"
        for folder, places in closed.items():
            lines += [f"mkdir -p {stage}", f"mount -t tmpfs -o mode=755 {NAME} {stage}"]
            for place in sorted(set(places)):
                here = shlex.quote(f"{stage}/{place.relative_to(folder)}")
                lines.append(f"mkdir -p {here}")
                lines.append(f"mount --rbind {shlex.quote(str(place))} {here}")
            lines.append(f"mount --move {stage} {shlex.quote(str(folder))}")
        return lines


def _closed_above(place: Path) -> Path | None:
    """Return the first folder above `place` that others may not enter."""
    for folder in reversed(place.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def need_unprivileged() -> None:
    """Require what such a user, and the user namespaces of its engine, need."""
    need("unshare", "setpriv", "mount", "newuidmap", "newgidmap")
    if os.geteuid() != 0:
        missing("a user of the test's own needs root")
    for name in ETC:
        if not (Path("/etc") / name).exists():
            missing(f"/etc/{name} is not there")
    if not Path(TUN).exists():
        missing(f"{TUN} is not there")
    if Path("/proc/sys/user/max_user_namespaces").read_text().strip() == "0":
        missing("this machine allows no user namespaces")
