from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from chaindock.container.contracts import ClientTls
from chaindock.controllers.docker.streams import image_context, pack_input, tls_archive

if TYPE_CHECKING:
    from pathlib import Path


def test_build_input_belongs_to_the_user_of_the_build(tmp_path: Path):
    tree = tmp_path / "tree"
    (tree / "src").mkdir(parents=True)
    (tree / "src/go.mod").write_text("module x")
    script = tree / "src/run.sh"
    script.write_text("#!/bin/sh")
    script.chmod(0o711)
    packed = io.BytesIO()
    pack_input(
        packed,
        tree,
        "/chaincode/input",
        500,
        ["/chaincode", "/chaincode/output"],
        {"/chaincode/ca.pem": b"PEM"},
    )
    packed.seek(0)
    with tarfile.open(fileobj=packed) as tar:
        found = {entry.name: entry for entry in tar}
    assert {(e.uid, e.gid, e.uname, e.gname) for e in found.values()} == {
        (500, 500, "", "")
    }
    assert {name: oct(entry.mode) for name, entry in found.items()} == {
        "chaincode": "0o755",
        "chaincode/output": "0o755",
        "chaincode/ca.pem": "0o644",
        "chaincode/input": "0o755",
        "chaincode/input/src": "0o755",
        "chaincode/input/src/go.mod": "0o644",
        "chaincode/input/src/run.sh": "0o755",
    }


def test_nothing_follows_the_mark_of_the_end(tmp_path: Path):
    """Podman may fail on what it does not read."""
    packed = io.BytesIO()
    pack_input(packed, tmp_path, "/in", 1, ["/in"], {})
    issued = ClientTls(key_pem="k", cert_pem="c", root_pem="r")
    for tar in (packed.getvalue(), tls_archive(issued)):
        assert tar.endswith(bytes(1024))
        assert tar[-1536:-1024].strip(b"\0"), "the last block of what is in it"


@given(st.binary(max_size=2000))
async def test_the_context_of_an_image_is_a_tar_with_two_files(artifact: bytes):
    context = image_context("FROM x\n", io.BytesIO(artifact))
    data = b"".join([part async for part in context])
    assert len(data) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {e.name: tar.extractfile(e).read() for e in tar}  # type: ignore[union-attr]
    assert files == {"Dockerfile": b"FROM x\n", "binpackage.tar": artifact}
