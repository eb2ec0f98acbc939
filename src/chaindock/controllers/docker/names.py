"""What containers, images, networks and volumes are called, and their labels.

Source: docs/fabric/docker.md (names)
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from typing import Any

from chaindock.container.contracts import NodeLabels
from chaindock.ids import Ccid

NODE = "org.chaindock.node"
CCID = "org.chaindock.ccid"
ATTEMPT = "org.chaindock.attempt"
ROLE = "org.chaindock.role"
BUILD_KEY = "org.chaindock.build"
LAUNCH = "org.chaindock.launch"
# Containers inherit the labels of their image, so an image must not carry NODE: what a
# user runs from it would look like ours.
BUILT_BY = "org.chaindock.built-by"
PACKAGE = "org.chaindock.package"
FABRIC_TYPE = "org.hyperledger.fabric.chaincode.type"
FABRIC = "latest"
"""What stands for Fabric's version in names of images, and in images."""
FABRIC_VERSION = "org.hyperledger.fabric.version"

DEFAULT_REGISTRY = "docker.io"
"""What engines take an image from whose name has no registry."""
MAX_IMAGE_NAME = 255
_NOT_ALLOWED = re.compile(r"[^a-zA-Z0-9\-_.]")
_IMAGE = re.compile(r"[a-z0-9]+(([._-][a-z0-9]+)+)?")
_GO_ARCH = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "i386": "386"}


def container_name(node: NodeLabels, ccid: Ccid) -> str:
    """Return `<networkId>-<peerId>-<ccid>`; empty parts are left out."""
    return _NOT_ALLOWED.sub("-", _base_name(node, ccid))


def image_name(node: NodeLabels, ccid: Ccid) -> str:
    """Return the name of the image of a chaincode, without a tag.

    A hash for labels that Fabric accepts and engines do not (`cc-`, `a..b`).
    """
    plain = _base_name(node, ccid).replace(":", "-")
    digest = hashlib.sha256(plain.encode()).hexdigest()
    name = _NOT_ALLOWED.sub("-", f"{plain}-{digest}").lower()
    if _IMAGE.fullmatch(name) and len(name) <= MAX_IMAGE_NAME:
        return name
    return f"chaindock-{digest}"


def _base_name(node: NodeLabels, ccid: Ccid) -> str:
    return "-".join(part for part in (node.network_id, node.peer_id, ccid) if part)


def own_tags(image: Mapping[str, Any]) -> set[str]:
    """Return the tags of a listed image, without the registry that Podman added."""
    found = {str(tag) for tag in image.get("RepoTags") or []}
    for registry in ("localhost/", f"{DEFAULT_REGISTRY}/library/"):
        found = {tag.removeprefix(registry) for tag in found}
    return found


def network_name(node: NodeLabels) -> str:
    """Return the name of the node's own network."""
    return f"chaindock-{_NOT_ALLOWED.sub('-', node.node_id)}"


def cache_volume(cache: str) -> str:
    """Return the name of the volume that keeps a {cache:NAME}, for all nodes."""
    return f"chaindock-cache-{_NOT_ALLOWED.sub('-', cache)}"


def build_key(inputs: Mapping[str, str]) -> str:
    """Return the address of a build: the hash of everything that goes into it."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def full_image(image: str) -> str:
    """Return an image name with its registry: `a:1` is `docker.io/library/a:1`."""
    first, slash, rest = image.partition("/")
    if slash and (set(".:") & set(first) or first == "localhost"):
        registry, path = first, rest
    else:
        registry, path = DEFAULT_REGISTRY, image
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = f"library/{path}"
    return f"{registry}/{path}"


def expand_image(text: str, arch: str) -> str:
    """Return an image name with $(ARCH), $(DOCKER_NS) and Fabric's versions filled.

    `arch` is Go's; "" = this machine's.
    """
    values = {
        "$(ARCH)": arch or _GO_ARCH.get(platform.machine().lower(), platform.machine()),
        "$(DOCKER_NS)": "hyperledger",
        "$(PROJECT_VERSION)": FABRIC,
        "$(TWO_DIGIT_VERSION)": FABRIC,
    }
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text
