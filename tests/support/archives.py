"""Archives for tests: good ones in every writer's layout, and broken ones."""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import dataclass

METADATA = b'{"path":"","type":"node","label":"basic_1.0"}'
SOURCE = {
    "src/index.js": b"exports.contracts = [];\n",
    "src/package.json": b'{"name":"basic","main":"index.js"}\n',
}


@dataclass(frozen=True)
class Raw:
    """One tar entry, every field of the header as it is told."""

    name: bytes
    data: bytes = b""
    kind: bytes = b"0"
    size: bytes | None = None
    link: bytes = b""
    mode: bytes = b"0100644"
    prefix: bytes = b""
    checksum: bytes | None = None

    def bytes(self) -> bytes:
        block = bytearray(512)
        block[0:100] = self.name.ljust(100, b"\0")[:100]
        block[100:108] = self.mode.ljust(8, b"\0")
        block[108:116] = block[116:124] = b"0000764\0"
        block[124:136] = (self.size or b"%011o" % len(self.data)).ljust(12, b"\0")
        block[136:148] = b"00000000000\0"
        block[148:156] = b" " * 8
        block[156:157] = self.kind
        block[157:257] = self.link.ljust(100, b"\0")
        block[257:265] = b"ustar\x0000"
        block[345:500] = self.prefix.ljust(155, b"\0")
        block[148:156] = self.checksum or b"%06o\0 " % sum(block)
        return bytes(block) + self.data + bytes(-len(self.data) % 512)


def pax(*records: tuple[str, bytes], kind: bytes = b"x") -> Raw:
    """A pax header with these records."""
    data = b""
    for keyword, value in records:
        body = b" " + keyword.encode() + b"=" + value + b"\n"
        size = len(body)
        while len(str(size)) + len(body) != size:
            size = len(str(size)) + len(body)
        data += str(size).encode() + body
    return Raw(b"PaxHeader", data, kind)


def raw_tar(*entries: Raw, end: bytes = bytes(1024)) -> bytes:
    return b"".join(entry.bytes() for entry in entries) + end


def files(content: dict[str, bytes] | None = None) -> list[Raw]:
    content = SOURCE if content is None else content
    return [Raw(name.encode(), data) for name, data in content.items()]


def zipped(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)


def code(*extra: Raw) -> bytes:
    """code.tar.gz with the usual files and then `extra`."""
    return zipped(raw_tar(*files(), *extra))


def package(
    code_archive: bytes | None = None, metadata: bytes = METADATA, *extra: Raw
) -> bytes:
    """A package around a code archive; `extra` are more entries of the outer archive."""
    archive = code() if code_archive is None else code_archive
    return zipped(
        raw_tar(Raw(b"metadata.json", metadata), Raw(b"code.tar.gz", archive), *extra)
    )


def fabric_go_package(label: str = "basic_1.0") -> bytes:
    """A package in the layout of `peer lifecycle chaincode package --lang golang`.

    Directory entries first, sorted, with mode 040755; then files; uid and gid 500.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("META-INF/", "META-INF/statedb/", "src/", "src/chaincode/"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o040755
            info.uid = info.gid = 500
            tar.addfile(info)
        for name, data in {
            "META-INF/statedb/couchdb/indexes/owner.json": (
                b'{"index":{"fields":["owner"]},"ddoc":"d","name":"n","type":"json"}'
            ),
            "src/chaincode/contract.go": b"package chaincode\n" * 500,
            "src/go.mod": b"module example.org/basic\n\ngo 1.22\n",
            "src/main.go": b"package main\n\nfunc main() {}\n",
        }.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o100644
            info.uid = info.gid = 500
            tar.addfile(info, io.BytesIO(data))
    return package(
        out.getvalue(),
        b'{"path":"example.org/basic","type":"golang","label":"%s"}' % label.encode(),
    )
