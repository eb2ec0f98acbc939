"""One program of tests/fixtures/clients, driven by JSON lines."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import subprocess
import threading
from collections import defaultdict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from support.shims import builds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENTS = builds.FIXTURES / "clients"
LANGUAGES = ("node", "go", "java")
PATIENCE_S = 60.0


class Fault(Exception):
    """What a client library raised.

    Attributes:
        kind: class of the error, the same word for all languages: GatewayError,
            EndorseError, SubmitError, CommitStatusError or CommitError.
        code: of gRPC, or the validation code of a CommitError.
        details: {address, mspid, message} of each peer.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(f"{told['kind']}: {told['message']} {told['details']}")
        self.kind: str = told["kind"]
        self.code: int | None = told["code"]
        self.message: str = told["message"] or ""
        self.tx_id: str | None = told["tx_id"]
        self.details: list[dict[str, str]] = told["details"]


class Driver:
    """A running program; safe for use by one thread."""

    def __init__(self, argv: tuple[str, ...], cwd: Path) -> None:
        self._process = subprocess.Popen(
            argv, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._numbers = itertools.count()
        self._asked: dict[int, Future[dict[str, Any]]] = {}
        self._events: dict[str, queue.Queue[dict[str, Any]]] = defaultdict(queue.Queue)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, op: str, **fields: Any) -> Future[dict[str, Any]]:
        """Send a request; its answer comes later. A failed one raises Fault."""
        number = next(self._numbers)
        answer: Future[dict[str, Any]] = Future()
        self._asked[number] = answer
        line = json.dumps({"id": number, "op": op, **fields})
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return answer

    def ask(self, op: str, **fields: Any) -> Any:
        """Send a request and return its answer."""
        return self.send(op, **fields).result(PATIENCE_S)

    def event(self, stream: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Return the next event of a listener."""
        told = self._events[stream].get(timeout=timeout_s)
        assert "event" in told, told
        found: dict[str, Any] = told["event"]
        return found

    def ended(self, stream: str, timeout_s: float = PATIENCE_S) -> Any:
        """Return with what error a listener ended; None = it was closed."""
        while "end" not in (told := self._events[stream].get(timeout=timeout_s)):
            pass
        return told["end"]

    def end(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "stream" in told:
                self._events[told["stream"]].put(told)
                continue
            answer = self._asked.pop(told["id"])
            if "error" in told:
                answer.set_exception(Fault(told["error"]))
            else:
                answer.set_result(told)
        for answer in self._asked.values():
            answer.set_exception(EOFError("the client ended"))


def argv(language: str) -> tuple[tuple[str, ...], Path]:
    """Build a client, once for all tests; return how it starts, and where."""
    source = CLIENTS / language
    if language == "go":
        program = builds.go_program(source)
        return (str(program),), program.parent
    if language == "java":
        folder = builds.java_classes(source)
        return (
            "java",
            *builds.JAVA,
            "-cp",
            f"{folder}:{folder}/lib/*",
            "Client",
        ), folder
    return ("node", "main.js"), builds.node_project(source)


@contextlib.contextmanager
def driver(language: str) -> Iterator[Driver]:
    """Give a running client of a language: node, go, java or old."""
    program = Driver(*argv(language))
    try:
        yield program
    finally:
        program.end()
