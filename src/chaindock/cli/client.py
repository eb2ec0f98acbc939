"""Talk to the node of a home over HTTP on its admin socket.

Each request has a connection of its own. Leaving a stream early closes it, which cancels
the work in the node.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import itertools
import json
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlencode

from chaindock.errors import (
    ChaindockError,
    Denied,
    InvalidInput,
    NodeError,
    NodeNotRunning,
)
from chaindock.operations import wire
from chaindock.operations.address import find_socket, reachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from chaindock.operations.facade import Call

_GONE = {errno.ENOENT, errno.ECONNREFUSED, errno.ENOTSOCK, errno.ENOTDIR}
CONNECT_S = 5.0
STATUS_S = 10.0
_PART_BYTES = 64 * 1024
_PAGE = 1000
"""Rows that are asked for at a time: the most the node gives."""


class AdminClient:
    """The admin API of the node of `home`; `channel`: None = the node's first one."""

    def __init__(self, home: Path, channel: str | None = None) -> None:
        self.home, self._channel = home, channel

    def get(
        self, *path: str, timeout_s: float | None = None, **asked: Any
    ) -> dict[str, Any]:
        """Return what a route answers: `get("state", name, limit=1)`; None is left out."""
        return self._ask("GET", _target(path, asked), timeout_s=timeout_s)

    def post(self, *path: str, **body: Any) -> dict[str, Any]:
        """Return what a route answers that does something with the members of `body`."""
        return self._ask("POST", _target(path), body)

    def put(self, *path: str, **body: Any) -> dict[str, Any]:
        """Return what a route answers that changes something to `body`."""
        return self._ask("PUT", _target(path), body)

    def delete(self, *path: str) -> None:
        """Remove something."""
        self._ask("DELETE", _target(path))

    def status(self) -> dict[str, Any]:
        """Return the fields of NodeStatus."""
        try:
            return self.get("status", timeout_s=STATUS_S)
        except NodeError as error:
            if not isinstance(error.__cause__, ConnectionError):
                raise
        return self.get("status", timeout_s=STATUS_S)  # a node that was killed is gone

    def shutdown(self) -> None:
        """Ask the node to stop."""
        self._ask("POST", "/shutdown", timeout_s=STATUS_S)

    def ps(self, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """Return the fields of Running of each chaincode."""
        answer = self.get("chaincodes", timeout_s=timeout_s)
        return list(answer["chaincodes"])

    def call(self, call: Call, verb: str) -> dict[str, Any]:
        """Submit (verb `invoke`), evaluate (`query`) or `compare`; return the answer."""
        return self.post("chaincodes", call.name, verb, **wire.call_json(call))

    def stop(self, name: str) -> None:
        """Stop a chaincode."""
        self.post("chaincodes", name, "stop")

    def remove(self, name: str) -> None:
        """Remove a chaincode."""
        self.delete("chaincodes", name)

    def pages(
        self, rows: str, *path: str, most: int | None = None, **asked: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield pages of a list until it ends or has `most` rows.

        `asked` begins with the parameter that takes `next`; `rows` names the list.
        """
        following, left = next(iter(asked)), most
        while True:
            wanted = _PAGE if left is None else min(left, _PAGE)
            page = self.get(*path, **asked, limit=wanted)
            yield page
            left = left if left is None else left - len(page[rows])
            if page["next"] is None or left == 0:
                return
            asked[following] = page["next"]

    def rows(self, rows: str, *path: str, **asked: Any) -> list[dict[str, Any]]:
        """Return the rows of all `pages`."""
        return [row for page in self.pages(rows, *path, **asked) for row in page[rows]]

    def events(
        self, name: str | None, first: int | None, *, follow: bool
    ) -> Iterator[dict[str, Any]]:
        """Yield chaincode events: `block`, `tx_id`, `chaincode`, `name`, `payload`."""
        asked = {"name": name, "from": first, "follow": int(follow)}
        return self._stream("GET", _target(("events",), asked))

    def blocks(self, first: int = 0) -> list[dict[str, Any]]:
        """Return a summary of each block from `first` on."""
        height = self.get("blocks")["height"]
        return [self.get("blocks", str(one)) for one in range(first, height)]

    def deploy(
        self, package: BinaryIO, asked: Mapping[str, str], terms: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Upload a package file; yield the events, the result last.

        `asked` has `name`, `version`, `backend` and `init` ("1": required), as given;
        `terms` the fields of lifecycle.terms.Said that were given.
        Raises: the error that ended the deployment.
        """
        said = json.dumps(terms).encode() if terms else b""
        size = len(said) + package.seek(0, os.SEEK_END)
        package.seek(0)
        query = urlencode({**asked, **({"terms": len(said)} if said else {})})
        parts = itertools.chain((said,), iter(partial(package.read, _PART_BYTES), b""))
        headers = {"Content-Length": str(size)}
        return self._stream("POST", f"/deploy?{query}", parts, headers)

    def start(self, name: str) -> Iterator[dict[str, Any]]:
        """Start a chaincode; yield the events, the result last."""
        return self._stream("POST", _target(("chaincodes", name, "start")))

    def logs(
        self, name: str, *, follow: bool = False, previous: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield log lines: `time`, `stream`, `tx`, `line`."""
        asked = {"follow": int(follow), "previous": int(previous)}
        return self._stream("GET", _target(("chaincodes", name, "logs"), asked))

    def _ask(
        self,
        method: str,
        target: str,
        body: dict[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        with self._request(method, target, data, timeout_s=timeout_s) as response:
            found: dict[str, Any] = _load(response.read())
            return found

    def _stream(
        self, method: str, target: str, *upload: Any
    ) -> Iterator[dict[str, Any]]:
        with self._request(method, target, *upload) as response:
            for event in map(_load, _lines(response)):
                if event.get("event") == wire.EVENT_ERROR:
                    raise wire.rebuild_error(event["error"])
                yield event
                if event.get("event") == wire.EVENT_RESULT:
                    return

    @contextlib.contextmanager
    def _request(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        if self._channel is not None:
            start = "&" if "?" in target else "?"
            target += start + urlencode({"channel": self._channel})
        connection = http.client.HTTPConnection("localhost")
        with socket.socket(socket.AF_UNIX) as connection.sock:
            self._connect(connection.sock, timeout_s)
            try:
                # A node that refuses a body may answer before it has all of it.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.request(method, target, body, headers or {})
                # The response keeps the socket open, too; until it is closed the node does
                # not notice that the client left.
                with connection.getresponse() as response:
                    if response.status != 200:
                        raise wire.rebuild_error(_load(response.read()))
                    yield response
            except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
                raise NodeError(
                    f"the node of home {str(self.home)!r} stopped or does not answer "
                    f"({type(error).__name__})",
                    hint="read the end of its log (node.log), and try `chaindock "
                    "status`",
                    home=str(self.home),
                ) from error

    def _connect(self, sock: socket.socket, timeout_s: float | None) -> None:
        home = str(self.home)
        try:
            sock.settimeout(CONNECT_S)
            with reachable(find_socket(self.home)) as address:
                sock.connect(address)
            sock.settimeout(timeout_s)
        except OSError as error:
            kind: type[ChaindockError] = NodeError
            told = f"the node of home {home!r} does not answer: {error}"
            hint = "read its log (node.log); `chaindock down` stops the node"
            if isinstance(error, PermissionError):
                kind = Denied
                told = f"the node of home {home!r} belongs to another user"
                hint = "run the command as that user, or use a home of your own"
            elif error.errno in _GONE:
                kind, told = NodeNotRunning, f"no node is running in {home!r}"
                hint = "start one: chaindock up -d   (another home: --home DIR)"
            raise kind(told, hint=hint, home=home) from error


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the lines. Raises: IncompleteRead without an end; `readline` does not."""
    rest = b""
    while part := response.read1(_PART_BYTES):
        *lines, rest = (rest + part).split(b"\n")
        yield from lines


def _target(path: Sequence[str], asked: Mapping[str, Any] | None = None) -> str:
    given = {
        name: ",".join(map(str, value)) if isinstance(value, list) else value
        for name, value in (asked or {}).items()
        if value is not None
    }
    if not all(path):  # of a script whose variable is not set
        raise InvalidInput("a name is empty", hint="say what the command is about")
    places = "".join(f"/{quote(part, safe='')}" for part in path)
    return f"{places}?{urlencode(given)}" if given else places


def _load(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise NodeError(
            f"the node answered something that is not JSON: {data[:80]!r}",
            hint="is this another version of Chaindock? restart the node",
        ) from error
