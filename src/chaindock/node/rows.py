"""What the admin API tells of chaincodes: rows of `ps`, and what a deployment came to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from chaindock.config.chaincodes import ChaincodeSections
from chaindock.ids import Ccid, at_peer, split_peer
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.definitions import Definition
from chaindock.lifecycle.deploy import Deployed
from chaindock.lifecycle.deployments import Deployment as Named
from chaindock.lifecycle.deployments import Fleet
from chaindock.lifecycle.states import LaunchState, Target
from chaindock.lifecycle.supervisor import Supervisor
from chaindock.lifecycle.terms import shown_policy
from chaindock.operations.facade import Deployment, Running


def result(deployed: Deployed, custodian: Custodian, began: float) -> Deployment:
    """Return what a deployment, or a start, came to that began at a monotonic time."""
    placement = deployed.placement
    supervisor = custodian.find(deployed.ccid)
    running = supervisor and supervisor.running
    return Deployment(
        name=deployed.name,
        version=deployed.version,
        sequence=deployed.sequence,
        package_id=deployed.ccid,
        backend=placement.given,
        changed=deployed.changed,
        **_shown(deployed.definition),
        reason=placement.why,
        details=running.facts if running else {},
        reused=tuple(deployed.attempt.reused),
        phases=[(str(p.phase), p.seconds) for p in deployed.attempt.phases],
        seconds=time.monotonic() - began,
    )


def row(
    deployment: Named,
    definition: Definition,
    fleet: Fleet,
    custodian: Custodian,
    settings: ChaincodeSections,
) -> Running:
    """Return what `ps` shows of a deployment."""
    ccid = deployment.ccid
    wrong = settings.problem_of(ccid, fleet.names_of(ccid))
    warning = {"warning": wrong.message} if wrong else {}
    placement = fleet.targets.placement(ccid)
    backend = placement.given or placement.asked
    mspids = fleet.channels[deployment.channel].mspids()
    shown = partial(_shown_run, deployment, backend=backend)
    return shown(
        custodian.find(ccid),
        warning,
        **_shown(definition),
        others=[
            shown(one, {}, name=at_peer(Ccid(deployment.name), mspid))
            for one in custodian.others(ccid)
            if (mspid := split_peer(one.ccid)[1]) in mspids
        ],
    )


def _shown_run(
    deployment: Named, one: Supervisor | None, told: dict[str, str], **fields: Any
) -> Running:
    """Return a line about a run; `fields` are some of the fields, `told` are details."""
    if one and deployment.target is Target.STOPPED and one.target is Target.RUNNING:
        one = None  # it runs for another name, or on another channel
    running = one.running if one else None
    next_try = one.next_try if one else None
    return Running(
        channel=deployment.channel,
        version=deployment.approval.version,
        sequence=deployment.approval.sequence,
        package_id=deployment.ccid,
        state=_state(deployment, one.state if one else LaunchState.DOWN),
        since=iso_time(deployment.since if one is None else one.since),
        details={**(running.facts if running else {}), **told},
        error=one.error.as_dict() if one and one.error else None,
        failures=one.policy.failures if one else 0,
        last_end=f"{one.exit.text} at {iso_time(one.died_at)}"
        if one and one.exit and one.died_at
        else None,
        calls=[
            {
                "tx_id": call.invocation.tx_id,
                "function": call.invocation.function,
                "since": iso_time(call.since),
                "sent": call.sent,
                "caller_left": call.over,
            }
            for call in (running.unanswered if running else ())
        ],
        next_try=iso_time(next_try) if next_try else None,
        **{"name": deployment.name, **fields},
    )


def gave_up(fleet: Fleet, custodian: Custodian) -> Iterator[str]:
    """Say of each chaincode whose restarts were given up why that is."""
    for one in custodian.gave_up():
        why = one.error.message if one.error else "?"
        for name in fleet.names_of(one.ccid):
            yield (
                f"gave up starting chaincode {name} ({one.state}, failures in a row: "
                f"{one.policy.failures}): {why}; see chaindock logs {name}"
            )


def _state(deployment: Named, state: LaunchState) -> str:
    if state is LaunchState.DOWN and deployment.target is Target.STOPPED:
        return "stopped"
    return str(state) if deployment.installed else "not-installed"


def _shown(definition: Definition) -> dict[str, Any]:
    configs = [one.static_collection_config for one in definition.collections.config]
    return {
        "policy": shown_policy(definition.validation_parameter),
        "collections": [config.name for config in configs],
    }


def iso_time(seconds: float) -> str:
    """Return seconds since 1970 as ISO 8601 UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
