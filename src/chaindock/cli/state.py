"""`state ls`, `get` and `history`: the keys of a chaincode on the ledger."""

from __future__ import annotations

import base64
from functools import partial

import click

from chaindock.cli import show
from chaindock.cli.keys import (
    PREVIEW_BYTES,
    TX_DIGITS,
    escaped,
    key_argument,
    key_of,
    parts_of,
    preview,
    shown,
)
from chaindock.cli.session import Session, command, limit_option, name_argument

collection_option = click.option(
    "--collection",
    default="",
    metavar="NAME",
    help="Name of a collection of private data.  [default: the public state]",
)


@click.group()
def state() -> None:
    """Look at and change the keys of a chaincode."""


state_command = partial(command, group=state, of_channel=True)


@state_command(
    "chaindock state ls                            # which chaincodes have state",
    "chaindock state ls coldchain --limit 10",
    "chaindock state ls coldchain --prefix P",
    "chaindock state ls coldchain --composite reading P1",
    "chaindock state ls deals --collection prices",
)
@name_argument(required=False)
@click.option("--prefix", default="", help="Only keys that begin with this text.")
@click.option(
    "--composite",
    "is_composite",
    is_flag=True,
    help="Only composite keys of TYPE that begin with these attributes.",
)
@click.argument("words", metavar="[TYPE [ATTR]...]", nargs=-1)
@collection_option
@limit_option(100)
def state_ls(
    session: Session,
    name: str | None,
    words: tuple[str, ...],
    *,
    collection: str,
    prefix: str,
    is_composite: bool,
    limit: int,
) -> None:
    """List the keys of a chaincode, or the chaincodes that have state.

    A value is cut to one line; `state get` shows all of it. What is not printable is
    shown with a backslash. A composite key is shown as the option --composite and its
    parts, as the other commands take it. With --json values are whole, as base64.
    """
    if name is None:
        session.shows(
            session.client().get("state")["namespaces"],
            NAME=lambda one: one["name"],
            COLLECTION=lambda one: escaped(one["collection"]) or "-",
            KEYS=lambda one: f"{one['keys']}{'+' * one['more']}",
        )
        return
    if is_composite and words:
        prefix = key_of(words, is_composite=True)
    elif words or is_composite:
        raise click.UsageError("TYPE and --composite belong together")
    cut = None if session.json else PREVIEW_BYTES
    asked = {"prefix": prefix, "cut": cut, "collection": collection or None}
    pages = list(
        session.client().pages("rows", "state", name, most=limit, start=None, **asked)
    )
    rows = [row for page in pages for row in page["rows"]]
    following = pages[-1]["next"]
    told = [{**row, "composite": parts_of(row["key"])} for row in rows]
    if session.emits({"height": pages[0]["height"], "rows": told, "next": following}):
        return
    if not rows:
        click.echo(f"{name} has no such key", err=True)
        return
    show.table(
        rows,
        KEY=lambda row: shown(row["key"]),
        BLOCK=lambda row: row["version"][0],
        TX=lambda row: row["version"][1],
        BYTES=lambda row: row["size"],
        VALUE=lambda row: preview(row["value"], row["size"]),
    )
    if following is not None:
        click.echo("there are more keys; see them with --limit or --prefix", err=True)


@state_command(
    "chaindock state get coldchain P1",
    "chaindock state get coldchain --composite reading P1 1",
    "chaindock state get deals D1 --collection prices",
)
@name_argument()
@key_argument
@collection_option
def state_get(session: Session, name: str, key: str, *, collection: str) -> None:
    """Print the value of a key.

    Standard output gets the value and nothing else; which transaction wrote it goes to
    standard error.
    """
    found = session.client().get(
        "state", name, "value", key=key, collection=collection or None
    )
    value = base64.b64decode(found["value"])
    told = {**found, "composite": parts_of(key), "result": show.parsed(value)}
    if session.emits(told):
        return
    show.emit_payload(value)
    tx = found.get("tx_id")
    wrote = f" by transaction {show.visible(tx[:TX_DIGITS])}" if tx else ""
    text = f"{show.count(found['size'], 'byte')}, written{wrote} in "
    click.echo(click.style(text + f"block {found['version'][0]}", dim=True), err=True)


@state_command(
    "chaindock state history coldchain P1",
    "chaindock state history coldchain --composite reading P1 1 --limit 5",
)
@name_argument()
@key_argument
@limit_option(100)
def state_history(session: Session, name: str, key: str, *, limit: int) -> None:
    """List the changes of a key, the newest first."""
    rows = session.client().rows(
        "rows", "state", name, "history", most=limit, before=None, key=key
    )
    session.shows(
        rows,
        f"no transaction wrote this key of {name}",
        BLOCK=lambda row: row["version"][0],
        TX=lambda row: row["version"][1],
        TIME=lambda row: (row["time"] or "-")[:19],
        TRANSACTION=lambda row: show.visible(row["tx_id"][:TX_DIGITS]),
        BYTES=lambda row: row["size"],
        VALUE=lambda row: (
            "(deleted)" if row["is_delete"] else preview(row["value"], row["size"])
        ),
    )
