"""`state put`, `del`, `export` and `import`: changes of the state by hand.

A change is a transaction on the namespace of the chaincode, which is endorsed, ordered
and validated as its own ones are.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.blocks import reason_lines
from chaindock.cli.call import CallCommand, next_step
from chaindock.cli.keys import (
    TX_DIGITS,
    composite,
    key_argument,
    key_of,
    key_words,
    parts_of,
)
from chaindock.cli.session import Session, name_argument
from chaindock.cli.state import collection_option, state, state_command
from chaindock.errors import (
    ChaindockError,
    InvalidInput,
    TransactionInvalid,
    os_errors_as,
)
from chaindock.operations.wire import encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["state"]
_KEYS, _VALUES = {"key", "composite"}, {"text", "json", "base64"}
"""Members of a line that name the key, and that give the value."""
_BATCH, _BATCH_BYTES = 1000, 1 << 20
"""Keys, and bytes of keys and values, in one transaction of an import."""


def _write_options(function: Any) -> Any:
    """Add the options that say into what, and as whom, is written."""
    signer = "Organisation whose admin signs.  [default: the node's first; "
    signer += "of a collection the first that may write it]"
    option = click.option("--org", metavar="MSPID", help=signer)
    return collection_option(option(function))


@state_command(
    """chaindock state put coldchain P1 '{"state": "intact"}'""",
    "chaindock state put coldchain P1 --file parcel.json",
    "chaindock state put coldchain --composite reading P1 1 -4",
    "chaindock state put deals D1 25 --collection prices",
    "chaindock state put coldchain P1 25 --org Org2MSP",
    cls=CallCommand,
)
@name_argument()
@key_words("KEY [VALUE]")
@_write_options
@click.option(
    "--file",
    "source",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Read the value from a file; - is standard input.",
)
def state_put(
    session: Session,
    name: str,
    words: Sequence[str],
    *,
    is_composite: bool,
    source: str | None,
    **into: Any,
) -> None:
    """Write a key of a chaincode.

    VALUE is the last word; --file replaces it. The chaincode NAME must be deployed; its
    program does not run. An admin signs the transaction.
    """
    if source is None:
        *words, text = words
        if not words:
            raise click.UsageError("expected KEY and VALUE, or KEY and --file FILE")
        value = text.encode(errors="surrogateescape")
    else:
        value = _read(source)
    if not value:
        raise click.UsageError(
            "the value is empty, which deletes a key in Fabric: use `state del`"
        )
    key = key_of(words, is_composite=is_composite)
    _write(session, name, [(key, value)], into)


@state_command(
    "chaindock state del coldchain P1",
    "chaindock state del coldchain --composite reading P1 1",
)
@name_argument()
@key_argument
@_write_options
def state_del(session: Session, name: str, key: str, **into: Any) -> None:
    """Delete a key of a chaincode; its history stays."""
    _write(session, name, [(key, b"")], into)


def _read(path: str) -> bytes:
    refused = os_errors_as(InvalidInput, repr(path), hint="check the path")
    with refused, click.open_file(path, "rb") as file:
        return bytes(file.read())


def _write(session: Session, *what: Any) -> None:
    answer = _committed(session, *what)
    told = {key: answer[key] for key in ("tx_id", "block", "code", "code_name")}
    tx = f"transaction {answer['tx_id'][:TX_DIGITS]}"
    text = f"{tx} is valid, in block {answer['block']}"
    session.says(told, click.style(text, dim=True))


def _committed(
    session: Session,
    name: str,
    writes: Sequence[tuple[str, bytes]],
    into: dict[str, Any],
) -> dict[str, Any]:
    told = [{"key": key, "value": encode(value)} for key, value in writes]
    answer = session.client().post("state", name, writes=told, **into)
    if answer["code"] != 0:
        tx = answer["tx_id"][:TX_DIGITS]
        text = f"transaction {tx} in block {answer['block']} is not valid: "
        text += f"{answer['code_name']} ({answer['code']}); nothing was written"
        raise TransactionInvalid(
            "\n".join([text, *reason_lines(answer)]),
            hint=next_step(answer, named=False)
            or f"see it: {session.words(f'tx show {tx}')}",
            tx_id=answer["tx_id"],
            validation_code=answer["code"],
        )
    return answer


@state_command(
    "chaindock state export coldchain > coldchain.jsonl",
    "chaindock state export coldchain --prefix P > parcels.jsonl",
    "chaindock state export deals --collection prices > prices.jsonl",
)
@name_argument()
@click.option("--prefix", default="", help="Only keys that begin with this text.")
@collection_option
def state_export(session: Session, name: str, prefix: str, collection: str) -> None:
    """Write the keys of a chaincode as JSON, one a line.

    A line has `key` or `composite` (a list: type and attributes), and `text`, or
    `base64` where the value is not UTF-8. `state import` reads these lines.
    """
    heights = set()
    asked: dict[str, Any] = {"prefix": prefix, "collection": collection or None}
    pages = session.client().pages("rows", "state", name, start=None, **asked)
    for page in pages:
        heights.add(page["height"])
        for row in page["rows"]:
            click.echo(json.dumps(_line(row["key"], base64.b64decode(row["value"]))))
    if len(heights) > 1:
        show.warn("blocks were committed meanwhile: later lines may be newer")


def _line(key: str, value: bytes) -> dict[str, Any]:
    parts = parts_of(key)
    named = {"key": key} if parts is None else {"composite": parts}
    try:
        return {**named, "text": value.decode()}
    except UnicodeDecodeError:
        return {**named, "base64": base64.b64encode(value).decode()}


@state_command(
    "chaindock state import coldchain coldchain.jsonl",
    "chaindock state import coldchain -            # from standard input",
)
@name_argument()
@click.argument("source", metavar="FILE", type=click.Path(allow_dash=True))
@_write_options
def state_import(session: Session, name: str, source: str, **into: Any) -> None:
    """Write keys from lines of JSON, as `state export` makes them.

    `json` instead of `text` gives a value as JSON, null deletes the key. All lines are
    checked before the first one is written. Many lines need several transactions, each
    of up to 1000 keys; what one wrote stays when a later one fails.
    """
    writes = [
        _read_line(f"{source!r}, line {number}", line)
        for number, line in enumerate(_read(source).split(b"\n"), 1)
        if line.strip()
    ]
    done, transactions = 0, 0
    for batch in _batches(writes):
        try:
            _committed(session, name, batch, into)
        except ChaindockError as error:
            told = (
                f"{done} of {show.count(len(writes), 'key')} were written before this"
            )
            error.hint = f"{told}; {error.hint}" if error.hint else told
            raise
        done, transactions = done + len(batch), transactions + 1
    text = f"{show.count(done, 'key')} written in "
    text += show.count(transactions, "transaction")
    session.says({"keys": done, "transactions": transactions}, text)


def _read_line(where: str, line: bytes) -> tuple[str, bytes]:
    expected = 'expected {"key": KEY or "composite": [TYPE, ATTR…], "text": VALUE}'
    expected = f"{expected}; nothing was written"
    try:
        data = json.loads(line)
    except ValueError as error:
        raise InvalidInput(f"{where}, is not JSON: {error}; {expected}") from error
    if wrong := _wrong_members(data):
        raise InvalidInput(f"{where}: {wrong}; {expected}")
    try:
        key = (
            data["key"]
            if "key" in data
            else composite(data["composite"][0], data["composite"][1:])
        )
        if "json" in data:
            given = data["json"]
            text = json.dumps(
                given, sort_keys=True, separators=(",", ":"), allow_nan=False
            )
            value = b"" if given is None else text.encode()
        elif "base64" in data:
            value = base64.b64decode(data["base64"], validate=True)
        else:
            value = data["text"].encode()
        key.encode()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{where}: {expected}") from error
    return key, value


def _wrong_members(data: Any) -> str | None:
    """Return what is wrong with the names in a line; None = nothing."""
    if not isinstance(data, dict):
        return "it is no object"
    if unknown := data.keys() - _KEYS - _VALUES:
        return f"unknown member {min(unknown)!r}"
    if not isinstance(data.get("composite", []), list):
        return "`composite` is no list"
    if data.get("key") == "":
        return "the key is empty"
    for what, names in (("key", _KEYS), ("value", _VALUES)):
        if len(found := sorted(data.keys() & names)) != 1:
            return (
                f"it has {' and '.join(found)}" if found else f"the {what} is missing"
            )
    return None


def _batches(
    writes: Sequence[tuple[str, bytes]],
) -> Iterator[Sequence[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    size = 0
    for key, value in writes:
        grows = len(key) + len(value)
        if batch and (len(batch) == _BATCH or size + grows > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((key, value))
        size += grows
    if batch:
        yield batch
