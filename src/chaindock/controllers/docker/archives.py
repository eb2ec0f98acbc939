"""The tars that go into containers and image builds.

Owns:    build input, TLS files, the context of an image build.
Not:     sending them (engine.py).
Entry:   pack_input, tls_archive, image_context
Holds:   owner and mode are written, never taken over; what is large is a file; nothing
         follows the mark of the end.
Source:  launch.md §2.5, §3.3, §3.7
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from typing import TYPE_CHECKING

from chaindock.container.environment import tls_files
from chaindock.controllers.docker.streams import chunks_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from chaindock.container.contracts import ClientTls

TLS_FOLDER = "/etc/hyperledger/fabric"


def pack_input(
    file: BinaryIO,
    tree: Path,
    *,
    under: str,
    owner: int,
    folders: Iterable[str],
    files: dict[str, bytes],
) -> None:
    """Write the tar that a build container is filled with, for its `/`. Blocking.

    Args:
        file: gets the tar.
        tree: what the package holds.
        under: where that goes, absolute.
        owner: uid and gid of everything.
        folders: absolute; exist afterwards and belong to `owner`.
        files: absolute name to content.
    """

    def owned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = owner
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o111 else 0o644
        return entry

    with _tar(file) as tar:
        for folder in folders:
            entry = tarfile.TarInfo(folder.strip("/"))
            entry.type = tarfile.DIRTYPE
            tar.addfile(owned(entry))
        for name, data in files.items():
            entry = tarfile.TarInfo(name.strip("/"))
            entry.size = len(data)
            tar.addfile(owned(entry), io.BytesIO(data))
        tar.add(tree, under.strip("/"), filter=owned)


def tls_archive(tls: ClientTls) -> bytes:
    """Return the tar of the TLS files, for TLS_FOLDER."""
    packed = io.BytesIO()
    with _tar(packed) as tar:
        for name, data in tls_files(tls).items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


async def image_context(dockerfile: str, artifact: BinaryIO) -> AsyncIterator[bytes]:
    """Yield the tar context of an image: Dockerfile and binpackage.tar."""
    text = dockerfile.encode()
    yield _header("Dockerfile", len(text)) + text + _padding(len(text))
    size = artifact.seek(0, 2)
    yield _header("binpackage.tar", size)
    async for chunk in chunks_of(artifact):
        yield chunk
    yield _padding(size) + bytes(2 * tarfile.BLOCKSIZE)


@contextlib.contextmanager
def _tar(file: BinaryIO) -> Iterator[tarfile.TarFile]:
    # Podman reads up to the mark of the end, and may fail on what is written after it:
    # https://github.com/containers/buildah/issues/6573
    with tarfile.open(fileobj=file, mode="w") as tar:
        yield tar
        end = file.tell() + 2 * tarfile.BLOCKSIZE
    file.truncate(end)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
