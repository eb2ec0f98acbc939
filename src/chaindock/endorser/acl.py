"""Who may use what of a peer: one policy for each resource.

A channel's configuration may name another policy for a resource of that channel.
Source: docs/fabric/peer.md#access
"""

from __future__ import annotations

from typing import Final

from chaindock.endorser.configuration import Configuration
from chaindock.errors import Denied, NotFound
from chaindock.identity.msp import Identity
from chaindock.ids import CHANNEL_WRITERS

_READERS: Final = "/Channel/Application/Readers"
_DEFAULTS: Final = {
    "peer/Propose": CHANNEL_WRITERS,
    "peer/ChaincodeToChaincode": CHANNEL_WRITERS,
    "event/Block": _READERS,
    "event/FilteredBlock": _READERS,
    "gateway/ChaincodeEvents": _READERS,
    "gateway/CommitStatus": _READERS,
    "cscc/GetChannelConfig": _READERS,
    "cscc/GetConfigBlock": _READERS,
    "qscc/GetBlockByHash": _READERS,
    "qscc/GetBlockByNumber": _READERS,
    "qscc/GetBlockByTxID": _READERS,
    "qscc/GetChainInfo": _READERS,
    "qscc/GetTransactionByID": _READERS,
    "_lifecycle/CheckCommitReadiness": CHANNEL_WRITERS,
    "_lifecycle/CommitChaincodeDefinition": CHANNEL_WRITERS,
    "_lifecycle/QueryChaincodeDefinition": CHANNEL_WRITERS,
    "_lifecycle/QueryChaincodeDefinitions": CHANNEL_WRITERS,
}


def require(
    configuration: Configuration, resource: str, identity: Identity | None
) -> Identity:
    """Return the identity if it may use a resource of a channel. Raises: Denied.

    `resource`: Fabric's name, e.g. `event/Block`, `qscc/GetChainInfo`, `peer/Propose`.
    `identity`: None = the signature is not that of any member.
    """
    own = configuration.acls.get(resource)
    path = own or _DEFAULTS.get(resource)
    if not path:
        raise Denied(f"Unmapped policy for {resource}")
    try:
        reason = configuration.policies.reason(path, [identity] if identity else [])
    except NotFound as error:
        reason = error.message
    if reason is None and identity is not None:
        return identity
    if own:
        said = "failed evaluating policy on signed data during check policy "
    else:
        said = (
            "Failed evaluating policy on signed data during check policy on channel "
            f"[{configuration.channel}] with policy "
        )
    raise Denied(f"{said}[{path}]: [{reason}]", policy=path)
