"""`block`, `tx` and `events`: what was committed, and why a transaction was refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import click

from chaindock.cli import show
from chaindock.cli.keys import TX_DIGITS, escaped, place, preview, shown
from chaindock.cli.session import Number, Session, command, limit_option, name_argument
from chaindock.cli.show import count

_SHOWN = 50
"""Reads, writes or arguments of a transaction in the text; --json has all."""


@click.group()
def block() -> None:
    """Look at blocks, and cut them."""


block_command = partial(command, group=block, of_channel=True)


@click.group()
def tx() -> None:
    """Look at a transaction."""


@block_command("chaindock block ls", "chaindock block ls --limit 5 --before 100")
@click.option("--before", type=Number(min=0), metavar="N", help="Only blocks below N.")
@limit_option(20)
def block_ls(session: Session, before: int | None, limit: int) -> None:
    """List the blocks, the newest first."""
    session.shows(
        session.client().rows("blocks", "blocks", most=limit, below=before),
        BLOCK=lambda one: one["number"],
        TIME=lambda one: (one["time"] or "-")[:19],
        TXS=lambda one: one["transactions"],
        VALID=lambda one: one["valid"],
        BYTES=lambda one: one["size"],
        HASH=lambda one: show.shorten(one["hash"]),
    )


@block_command("chaindock block show 7", "chaindock block show 7 --json")
@click.argument("number", type=Number(min=0))
def block_show(session: Session, number: int) -> None:
    """Show a block: its hashes, and its transactions and how they ended.

    With --json also what each transaction read and wrote.
    """
    brief = None if session.json else 1
    found = session.client().get("blocks", str(number), brief=brief)
    if session.emits(found):
        return
    show.pairs(
        [
            ("block", str(found["number"])),
            ("hash", found["hash"]),
            ("previous", found["previous_hash"] or "-"),
            ("data hash", found["data_hash"]),
            ("commit hash", found["commit_hash"] or "-"),
            ("size", count(found["size"], "byte")),
        ]
    )
    click.echo()
    show.table(
        found["transactions"],
        TX=lambda one: one["position"],
        TRANSACTION=lambda one: escaped(one["tx_id"][:TX_DIGITS]) or "-",
        CODE=_code,
        CHAINCODE=lambda one: escaped(one["chaincode"] or one["type"]),
        FUNCTION=lambda one: escaped(one["function"] or "-"),
        READS=lambda one: one["reads"] + one["ranges"],
        WRITES=lambda one: one["writes"],
        BYTES=lambda one: one["size"],
    )


@block_command("chaindock block cut")
def block_cut(session: Session) -> None:
    """Put the transactions that wait into a block.

    Too many for one block get several. `chaindock up --block MODE` sets when the node
    makes blocks by itself.
    """
    found = session.client().post("blocks", "cut")
    if session.emits(found):
        return
    if not found["transactions"]:
        click.echo("no transaction waits for a block", err=True)
        return
    told = count(found["transactions"], "transaction")
    click.echo(f"{told} committed; the ledger has {found['height']} blocks")


def _code(one: Mapping[str, Any]) -> str:
    return click.style(one["code_name"] or "-", fg=None if one["code"] == 0 else "red")


@command(
    "chaindock tx show 3f9a5c1be2",
    "chaindock tx show 3f9a5c1be2 --json",
    group=tx,
    of_channel=True,
)
@click.argument("id_", metavar="ID")
def tx_show(session: Session, id_: str) -> None:
    """Show a transaction: what it did, and how it ended.

    ID may be the first digits of the id. For a conflict the text says which key had
    changed since the transaction read it, and which transaction had changed it. For a
    policy that is not satisfied, it names the policy, and who has endorsed.
    """
    if not id_.strip():
        raise click.UsageError("the id is empty: expected an id, or its first digits")
    found = session.client().get("transactions", id_)
    if session.emits(found):
        return
    show.pairs([(name, text) for name, text in _summary(found) if text])
    for heading, rows in _lists(found):
        if rows:
            click.echo(click.style(f"\n{heading}", dim=True))
            for row in rows[:_SHOWN]:
                click.echo(f"  {row}")
            if len(rows) > _SHOWN:
                click.echo(f"  … {len(rows) - _SHOWN} more, see --json")


def _summary(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "transaction", escaped(found["tx_id"])
    yield "block", f"{found['block']}, position {found['position']}"
    yield "code", f"{_code(found)} ({found['code']})"
    for line in reason_lines(found):
        yield "", line
    yield "time", found["time"] or "-"
    yield "size", count(found["size"], "byte")
    if not found["chaincode"]:
        yield "type", found["type"]
    else:
        yield "chaincode", escaped(f"{found['chaincode']} {found['version'] or ''}")
    if found["function"] is not None:
        yield "function", escaped(found["function"]) + " (Init)" * found["is_init"]
    yield "creator", _identity(found["creator"])
    for one in found["endorsers"]:
        yield "endorser", _identity(one)
    if response := found["response"]:
        told = escaped(response["message"])
        yield "response", f"{response['status']} {told} {preview(response['payload'])}"
    if event := found["event"]:
        yield "event", f"{escaped(event['name'])} {preview(event['payload'])}"
    if found.get("unreadable"):
        yield "unreadable", found["unreadable"]


def _lists(found: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    asked = (found["requests"] or {}).items()
    yield "requests of the chaincode", [_times(kind, *known) for kind, known in asked]
    yield "arguments", [preview(arg) or '""' for arg in found["args"]]
    yield ("reads", [f"{_key(one)}  {_seen(one['version'])}" for one in found["reads"]])
    yield "ranges", [_range(one) for one in found["ranges"]]
    writes = [
        f"{_key(one)}  {'(deleted)' if one['is_delete'] else preview(one['value'])}"
        for one in found["writes"]
    ]
    yield "writes", writes
    labels = [f"{_key(one)}  {_names(one)}" for one in found["metadata_writes"]]
    yield "metadata", labels
    yield ("private data", [line for one in found["private"] for line in _private(one)])


def _times(kind: str, number: float, all_s: float, *each_s: float) -> str:
    told = f"{kind}: {number:.0f}, {all_s * 1000:.2f} ms in the node"
    if number == 1:
        return told
    each = ", ".join(f"{one_s * 1000:.2f}" for one_s in each_s)
    return f"{told} ({each}{', …' if number > len(each_s) else ''})"


def _private(one: Mapping[str, Any]) -> Iterator[str]:
    reads, writes = count(len(one["reads"]), "read"), count(len(one["writes"]), "write")
    yield escaped(f"{one['namespace']} {one['collection']}: {reads}, {writes}")
    for write in one["writes"]:
        did = "(deleted)" if write["is_delete"] else f"value hash {write['value_hash']}"
        did = "(purged)" if write["is_purge"] else did
        yield f"  key hash {write['key_hash']}, {did}"
    for label in one["metadata_writes"]:
        yield f"  key hash {label['key_hash']}, metadata {_names(label)}"


def _names(label: Mapping[str, Any]) -> str:
    return ", ".join(map(escaped, label["entries"])) or "(removed)"


def _key(one: Mapping[str, Any]) -> str:
    return f"{escaped(one['namespace'])}  {shown(one['key'])}"


def _range(one: Mapping[str, Any]) -> str:
    end = shown(one["end"]) if one["end"] else "the end"
    keys = "keys as a hash" if one["reads"] is None else count(len(one["reads"]), "key")
    start = shown(one["start"]) if one["start"] else "the first key"
    return f"{escaped(one['namespace'])}  from {start} to {end}: {keys}"


def _identity(one: Mapping[str, str] | None) -> str:
    return "-" if one is None else escaped(f"{one['subject']}  ({one['mspid']})")


def reason_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a transaction was refused, if that is known."""
    if found["conflict"]:
        yield from _conflict_lines(found["conflict"])
    if unmet := found["unmet"]:
        whose = escaped(unmet["namespace"])
        if collection := unmet["collection"]:
            whose = f"{whose}, collection {escaped(collection)}"
        if unmet["key"] or unmet["key_hash"]:
            key = shown(unmet["key"] or "") or f"with the hash {unmet['key_hash']}"
            whose = f"key {key} of {whose}"
        if unmet["policy"] is None:
            yield "an earlier transaction of the block changed the policy of a written key"
        else:
            yield f"policy of {whose}: {escaped(unmet['policy'])}"
        if unmet["reason"]:
            yield escaped(unmet["reason"])
        yield f"endorsed by: {escaped(', '.join(unmet['endorsers'])) or 'nobody'}"


def _seen(version: Sequence[int] | None) -> str:
    return "as absent" if version is None else f"at {place(version)}"


def _conflict_lines(conflict: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was read, what is there now, and who wrote that."""
    name = escaped(conflict["namespace"])
    key = shown(conflict["key"] or "") or f"with the hash {conflict['key_hash']}"
    if collection := conflict["collection"]:
        name = f"{name}, collection {escaped(collection)},"
    writer = escaped(conflict["writer"][:TX_DIGITS])
    changed = place(conflict["writer_version"])
    if conflict["found"] is None:
        changed = f"absent, deleted in {changed}"
    read = _seen(conflict["read"]) if conflict["known"] else "at an earlier range"
    yield f"key {key} of {name} was read {read}"
    yield f"found: {changed}, by transaction {writer}"


@command(
    "chaindock events                       # all that are on the ledger",
    "chaindock events coldchain -f          # from now on, until Ctrl-C",
    "chaindock events -f --from 0 --json",
    of_channel=True,
)
@name_argument(required=False)
@click.option("-f", "--follow", is_flag=True, help="Wait for more events until Ctrl-C.")
@click.option(
    "--from",
    "first",
    type=Number(min=0),
    metavar="BLOCK",
    help="Number of the first block.  [default: 0; with --follow the next one]",
)
def events(
    session: Session, name: str | None, *, follow: bool, first: int | None
) -> None:
    """Show the events of chaincodes.

    Each valid transaction that set an event gives one line: block, transaction,
    chaincode, name of the event, payload. With --json each line is one object.
    """
    begin = first if first is not None or follow else 0
    event = None
    try:
        for event in session.client().events(name, begin, follow=follow):
            _show_event(event, as_json=session.json)
    except KeyboardInterrupt:
        if not follow:
            raise
    if event is None and not follow and not session.json:
        click.echo("no valid transaction has set an event", err=True)


def _show_event(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        del event["event"]
        payload = base64.b64decode(event["payload"])
        click.echo(json.dumps({**event, "result": show.parsed(payload)}))
        return
    click.echo(
        f"{event['block']:<6} {escaped(event['tx_id'][:TX_DIGITS])}  "
        f"{escaped(event['chaincode'])}  {escaped(event['name'])}  "
        f"{preview(event['payload'])}"
    )
