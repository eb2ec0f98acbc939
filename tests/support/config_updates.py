"""What `configtxlator compute_update` makes of two configurations, and who signs it.

And some changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric_protos.common import common_pb2, configtx_pb2
from fabric_protos.orderer.configuration_pb2 import BatchTimeout

from chaindock.endorser.genesis import _signed, config_envelope, member_group

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Change = Callable[[Any], object]
_KINDS = ("groups", "values", "policies")


def compute(channel: str, old: Any, new: Any) -> Any:
    """Return the ConfigUpdate that leads from one Config to another one."""
    update = configtx_pb2.ConfigUpdate(channel_id=channel)
    changed = _differ(
        old.channel_group, new.channel_group, update.read_set, update.write_set
    )
    assert changed, "nothing is changed"
    return update


def _differ(old: Any, new: Any, read: Any, write: Any) -> bool:
    """Fill the sets with what differs between two groups; return whether anything does."""
    read.version = write.version = old.version
    names = [set(getattr(group, kind)) for group in (old, new) for kind in _KINDS]
    whole = names[:3] != names[3:] or old.mod_policy != new.mod_policy
    changed = whole
    for kind in _KINDS:
        before, after = getattr(old, kind), getattr(new, kind)
        for name in after:
            if name not in before:
                getattr(write, kind)[name].CopyFrom(after[name])
                getattr(write, kind)[name].version = 0
                continue
            held, made = configtx_pb2.ConfigGroup(), configtx_pb2.ConfigGroup()
            one = getattr(held, kind)[name], getattr(made, kind)[name]
            if kind == "groups":
                differs = _differ(before[name], after[name], *one)
            else:
                one[0].version = before[name].version
                one[1].version = before[name].version
                if differs := before[name] != after[name]:
                    one[1].CopyFrom(after[name])
                    one[1].version = before[name].version + 1
            changed = changed or differs
            if differs or whole:
                getattr(write, kind)[name].CopyFrom(one[1])
                if kind == "groups" or not differs:
                    getattr(read, kind)[name].CopyFrom(one[0])
    if whole:
        write.version, write.mod_policy = old.version + 1, new.mod_policy
    return changed


def update(
    config: Any, change: Callable[[Any], object], channel: str = "mychannel"
) -> Any:
    """Return the ConfigUpdate for what `change` does to the channel group of a Config."""
    new = configtx_pb2.Config()
    new.CopyFrom(config)
    change(new.channel_group)
    return compute(channel, config, new)


def envelope(
    asked: Any, *admins: Any, by: Any = None, channel: Any = "mychannel"
) -> bytes:
    """Return the envelope of an update that `admins` signed and `by` sends."""
    raw = asked.SerializeToString(deterministic=True)
    signed = configtx_pb2.ConfigUpdateEnvelope(
        config_update=raw, signatures=_signatures(raw, admins)
    )
    return config_envelope(common_pb2.CONFIG_UPDATE, channel, signed, by or admins[0])


def _signatures(raw: bytes, admins: Sequence[Any]) -> list[Any]:
    return [_signed(raw, one) for one in admins]


def config(node: Any) -> Any:
    return node.endorser.configuration.config


async def change(node: Any, how: Change, *admins: Any) -> Any:
    made = envelope(update(config(node), how), *(admins or node.admins))
    where = await node.orderer.submit(made)
    assert (where.code, where.index) == (0, 0)
    return made


def put(group: Any, name: str, value: Any, mod_policy: str = "Admins") -> None:
    held = group.values[name]
    held.value, held.mod_policy = value.SerializeToString(), mod_policy


def timeout(text: str) -> Change:
    value = BatchTimeout(timeout=text)
    return lambda group: put(group.groups["Orderer"], "BatchTimeout", value)


def leaves(mspid: str) -> Change:
    return lambda group: group.groups["Application"].groups.pop(mspid)


def joins(msp: Any) -> Change:
    made = member_group(msp)
    return lambda group: group.groups["Application"].groups[msp.mspid].CopyFrom(made)
