"""A tiny image registry with one image and, if wanted, a password or a fault."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import secrets
import tarfile
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Registry:
    """Serves `localhost:PORT/NAME:1`; `asked` has every request.

    `localhost:PORT/NAME:elsewhere` is for a processor that nobody has. `refuses` maps the
    beginning of names to the status that their manifests are refused with: 404 or 429.
    """

    def __init__(self, user: str = "", password: str = "") -> None:
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._wanted = f"Basic {token}" if user else ""
        self.asked: list[str] = []
        self.port = 0
        self.refuses: dict[str, int] = {}
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            entry = tarfile.TarInfo("hello")
            # Another layer each time, or an engine would know it already.
            content = secrets.token_bytes(32)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        layer = gzip.compress(raw.getvalue(), mtime=0)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [digest(raw.getvalue())]},
            }
        ).encode()
        image, gz = (
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        )
        self._manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _part(image, config),
                "layers": [_part(gz, layer)],
            }
        ).encode()
        self._blobs = {digest(data): data for data in (config, layer)}
        there = {"architecture": "vax", "os": "linux"}
        part = _part(MANIFEST, self._manifest)
        self._list = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": LIST,
                "manifests": [{**part, "platform": there}],
            }
        ).encode()

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path}")
        if self._wanted and request.headers.get("Authorization") != self._wanted:
            challenge = {"WWW-Authenticate": 'Basic realm="test"'}
            return web.Response(status=401, headers=challenge)
        last = request.path.rstrip("/").rpartition("/")[2]
        status = self._refusal(request.path)
        if status == 429:
            problem = {"code": "TOOMANYREQUESTS", "message": "rate limit, wait 90 s"}
            return web.json_response(
                {"errors": [problem]}, status=429, headers={"Retry-After": "1"}
            )
        if status == 404:
            last = ""
        if last in {"elsewhere", digest(self._list)}:
            body, kind = self._list, LIST
        elif "/manifests/" in request.path and last in {"1", digest(self._manifest)}:
            body, kind = self._manifest, MANIFEST
        elif last in self._blobs:
            body, kind = self._blobs[last], "application/octet-stream"
        elif request.path == "/v2/":
            body, kind = b"{}", "application/json"
        else:
            return web.json_response(
                {
                    "errors": [
                        {"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}
                    ]
                },
                status=404,
            )
        headers = {"Docker-Content-Digest": digest(body), "Content-Type": kind}
        return web.Response(body=body, headers=headers)

    def _refusal(self, path: str) -> int | None:
        name, manifests, _ = path.removeprefix("/v2/").partition("/manifests/")
        found = (self.refuses[one] for one in self.refuses if name.startswith(one))
        return next(found, None) if manifests else None

    @contextlib.asynccontextmanager
    async def serve(self, port: int = 0) -> AsyncIterator[str]:
        """Give `localhost:PORT`; Docker takes such a registry without TLS."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        try:
            yield f"localhost:{self.port}"
        finally:
            await runner.cleanup()


def _part(kind: str, data: bytes) -> dict[str, object]:
    return {"mediaType": kind, "size": len(data), "digest": digest(data)}
