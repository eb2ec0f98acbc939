"""A node that starts again with what is broken, hangs, or is very large."""

from __future__ import annotations

import shutil
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chaindock.processes.child import end_with_node
from support.need import missing
from support.nodes.node import FIXTURES, PROCESS, Node, eventually, started

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(400),
]
SHIM = FIXTURES / "foreign" / "node-shim"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with started(PROCESS, tmp_path / "node") as node:
        yield node


def test_a_start_has_nothing_to_do_with_packages_of_what_is_stopped(node: Node):
    """launch.md W2: one that is damaged is told when it is started, and not before."""
    node.ask("deploy", SHIM, "--name", "used")
    resting = node.ask("deploy", SHIM, "--name", "resting", "--label", "resting_7")
    node.invoke("used", "put", "n1", "kept")
    node.cli("stop", "resting")
    node.end()
    label, _, digest = resting["package_id"].partition(":")
    (node.home / "packages" / f"{label}.{digest}.tar.gz").write_bytes(b"damaged")
    node.up()
    assert node.query("used", "get", "n1") == b"kept"
    told = node.ask("start", "resting", code=None)
    assert "changed since it was installed" in told["message"]
    assert node.query("used", "get", "n1") == b"kept"


def test_what_hangs_at_the_start_keeps_no_other_from_coming_up(tmp_path: Path):
    """launch.md W1, needs.md rows 28 and 29."""
    flags = [
        *("--set", "chaincode.startuptimeout=60s"),
        *("--set", "chaindock.process.sandbox=off"),  # the gate lies outside
    ]
    with started(PROCESS, tmp_path / "node", *flags) as node, ExitStack() as after:
        source = tmp_path / "source"
        shutil.copytree(SHIM, source)
        node.ask("deploy", SHIM, "--name", "used")
        node.invoke("used", "put", "n1", "kept")
        # The same package, which from the next start on never says a word. The gate is
        # named by the label: the source is the same in each run, and built already.
        file, unique = source / "chaincode.js", uuid.uuid4().hex
        gate = Path(f"/tmp/gate-of-{unique}")
        text = file.read_text()
        file.write_text(
            "const [of] = process.env.CORE_CHAINCODE_ID_NAME.split('_');\n"
            "if (require('fs').existsSync('/tmp/gate-of-' + of)) {\n"
            "  for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);\n"
            f"}}\n{text}"
        )
        for number in range(3):
            node.ask("deploy", source, "--name", f"stuck{number}",
                     "--label", f"{unique}_{number}")  # fmt: skip
        node.end()
        gate.touch()
        after.callback(gate.unlink, missing_ok=True)
        node.up(*flags)
        assert node.query("used", "get", "n1") == b"kept"
        for number in range(3):
            line = node.ps(f"stuck{number}")
            assert line is not None
            assert line["state"] != "running"
        gate.unlink()


def test_chaincode_ends_with_a_node_that_is_killed(node: Node):
    """launch.md W17: it is not left to the next start, which may never come."""
    if not end_with_node():
        missing("the system does not tell a process that its parent has ended")
    node.ask("deploy", SHIM, "--name", "notes")
    place = node.where("notes")
    assert node.runs(place)
    node.kill()
    eventually(lambda: not node.runs(place), "the chaincode is gone too")
    node.up()
    assert node.invoke("notes", "put", "n1", "kept")["code"] == 0


def test_a_package_beyond_fabrics_limit_deploys_when_it_is_allowed(tmp_path: Path):
    """launch.md W41."""
    source = tmp_path / "source"
    shutil.copytree(SHIM, source)
    with (source / "vendored.bin").open("wb") as file:
        block = bytes(range(256)) * 4096
        for number in range(110):  # distinct blocks: nothing that shrinks to nothing
            file.write(number.to_bytes(4, "big") + block[4:])
    with started(PROCESS, tmp_path / "small") as node:
        told = node.ask("deploy", source, "--name", "large", code=None)
        assert "vendored.bin" in str(told)
        assert node.ask("ps") == []
    flags = ("--set", "chaindock.package.size=200MiB")
    with started(PROCESS, tmp_path / "large", *flags) as node:
        node.ask("deploy", source, "--name", "large")
        node.invoke("large", "put", "n1", "kept")
        assert node.query("large", "get", "n1") == b"kept"
