"""`invoke` and `query`.

Owns:    arguments as typed, who signs, the form of an answer.
Not:     endorsing and ordering (the node).
Entry:   invoke, query
Holds:   a plain query writes the payload to standard output and nothing else.
Source:  ADR-0001
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.exits import Exit
from chaindock.cli.session import Session, home_option, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chaindock.operations.facade import Call

_NUMBER = re.compile(r"-(\d|\.\d|$)")
_ERROR_STATUS = 400


class CallCommand(click.Command):
    """Takes `-5` as an argument, and refuses `--unknown` unless it follows `--`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Check the options that click is told to let pass."""
        ctx.ignore_unknown_options = True
        known = {opt for param in self.get_params(ctx) for opt in param.opts}
        for arg in args:
            if arg == "--":
                break
            name = arg.split("=", 1)[0]
            if arg.startswith("-") and not _NUMBER.match(arg) and name not in known:
                raise click.UsageError(
                    f"No such option: {name}\nTo pass it to the chaincode, put -- "
                    f"before the name of the chaincode.",
                    ctx,
                )
        return super().parse_args(ctx, args)


def _pair(_ctx: Any, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    found = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r}: expected KEY=VALUE", param=param)
        found[key] = rest
    return found


def _call_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for add in (
        click.argument("name"),
        click.argument("function"),
        click.argument("args", nargs=-1, type=click.UNPROCESSED),
        click.option(
            "--transient",
            multiple=True,
            metavar="K=V",
            callback=_pair,
            help="A value the chaincode sees and the ledger does not; repeatable.",
        ),
        click.option(
            "--as",
            "user",
            default="User1",
            show_default=True,
            metavar="USER",
            help="Who signs; made on first use.",
        ),
        click.option(
            "--attr",
            multiple=True,
            metavar="K=V",
            callback=_pair,
            help="An attribute of the signer's certificate; repeatable.",
        ),
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=0, min_open=True, max=86_400, max_open=True),
            metavar="SECONDS",
            help="Limit for the chaincode's answer.  [default: "
            "chaincode.executetimeout]",
        ),
        json_option,
        home_option,
    )[::-1]:
        command = add(command)
    return pass_session(command)


@click.command(cls=CallCommand)
@_call_options
@click.option("--init", "is_init", is_flag=True, help="Call Init of the chaincode.")
def invoke(session: Session, is_init: bool, **given: Any) -> int:
    """Submit a transaction.

    Calls FUNCTION of the chaincode NAME with ARGS as they are typed, orders what it
    wrote and waits until it is on the ledger. The payload goes to standard output.
    """
    call = _read(given, is_init=is_init)
    answer = session.client().invoke(call)
    if session.json:
        show.emit_json(_as_json(answer, ordered=True))
    elif _refused(answer):
        _say_refused(call.name, answer)
    else:
        show.emit_payload(show.payload_of(answer))
        _say_committed(answer)
    valid = answer["code"] in {0, None}
    return Exit.REFUSED if _refused(answer) or not valid else Exit.OK


@click.command(cls=CallCommand)
@_call_options
def query(session: Session, **given: Any) -> int:
    """Call a function without writing to the ledger.

    Calls FUNCTION of the chaincode NAME with ARGS as they are typed. Standard output
    gets the payload and nothing else.
    """
    call = _read(given)
    answer = session.client().query(call)
    if session.json:
        show.emit_json(_as_json(answer, ordered=False))
    elif _refused(answer):
        _say_refused(call.name, answer)
    else:
        show.emit_payload(show.payload_of(answer))
    return Exit.REFUSED if _refused(answer) else Exit.OK


def _read(given: dict[str, Any], *, is_init: bool = False) -> Call:
    from chaindock.operations.facade import Call

    return Call(
        name=given["name"],
        args=[_bytes(text) for text in (given["function"], *given["args"])],
        transient={key: _bytes(value) for key, value in given["transient"].items()},
        user=given["user"],
        attributes=given["attr"],
        is_init=is_init,
        timeout_s=given["timeout_s"],
    )


def _bytes(text: str) -> bytes:
    # What the shell passed is not always UTF-8; it goes on byte by byte.
    return text.encode(errors="surrogateescape")


def _refused(answer: dict[str, Any]) -> bool:
    return int(answer["status"]) >= _ERROR_STATUS


def _as_json(answer: dict[str, Any], *, ordered: bool) -> dict[str, Any]:
    shown = {
        "result": show.parsed(show.payload_of(answer)),
        "payload": answer["payload"],
        "status": answer["status"],
        "message": answer["message"],
    }
    if ordered:
        for key in ("tx_id", "block", "code", "code_name", "event"):
            shown[key] = answer.get(key)
    return shown


def _say_refused(name: str, answer: dict[str, Any]) -> None:
    message = show.visible(answer["message"].replace("\n", " ")) or "no message"
    click.echo(
        click.style("error: ", fg="red", bold=True)
        + f"chaincode {name!r} answered {answer['status']}: {message}",
        err=True,
    )


def _say_committed(answer: dict[str, Any]) -> None:
    if answer["block"] is None:
        return
    tx = f"transaction {answer['tx_id'][:12]}"
    if answer["code"] == 0:
        text = f"{tx} is valid, in block {answer['block']}"
        click.echo(click.style(text, dim=True), err=True)
        return
    click.echo(
        click.style("error: ", fg="red", bold=True)
        + f"{tx} in block {answer['block']} is not valid: {answer['code_name']} "
        f"({answer['code']}); nothing was written",
        err=True,
    )
