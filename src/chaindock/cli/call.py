"""`invoke` and `query`.

A plain query writes the payload to standard output and nothing else. A transaction that
is not valid has no result: its payload is not printed.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.session import (
    Seconds,
    Session,
    command,
    list_option,
    name_argument,
    pairs_option,
)
from chaindock.cli.show import Exit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chaindock.operations.facade import Call

_NUMBER = re.compile(r"-(\d|\.\d|$)")
_PEER_OPTIONS = {"--channelID", "-n", "--name", "-c", "--ctor"}
_ERROR_STATUS = 400
_POLICY_FAILURE = 10
_POLICY_HINTS = {
    True: "leave out --endorsers: the node then asks those that the policies need",
    False: "the organisations whose keys this node has do not satisfy all policies: see "
    "chaindock org ls, chaindock ps; a key or a collection can have a policy of its own",
}
"""Next step after a policy failed, by whether the user named endorsers."""
_SHOWN_VALUES = 3


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
                told = "To pass it to chaincode, put -- before the chaincode's name."
                if name in _PEER_OPTIONS and self.name in {"invoke", "query"}:
                    form = f"{ctx.command_path} NAME FUNCTION ARGS..."
                    told = f"Write: {form} [--channel NAME]"
                raise click.UsageError(f"No such option {name!r}. {told}", ctx)
        return super().parse_args(ctx, args)


def _call_options(function: Any) -> Any:
    """Add what `invoke` and `query` share, named as the fields of Call."""
    for add in (
        click.option(
            "--timeout",
            "timeout_s",
            type=Seconds(min=0, min_open=True, max=86_400, max_open=True),
            metavar="SECONDS",
            help="Longest time until the chaincode answers.  [default: the setting "
            "chaincode.executetimeout, which is 30s at first]",
        ),
        pairs_option(
            "--attr",
            "attributes",
            text="An attribute of the signer's certificate; repeatable.",
        ),
        click.option(
            "--as",
            "user",
            default="User1",
            show_default=True,
            metavar="USER",
            help="User who signs; created on first use.",
        ),
        click.option(
            "--org",
            metavar="MSPID",
            help="Organisation of the user who signs.  [default: the node's first]",
        ),
        click.option(
            "--check-determinism",
            "compares",
            is_flag=True,
            help="First run the proposal 5 times, which takes 1.2 s and more, and once in "
            "another time zone and locale, for which the chaincode is restarted. If the "
            "results differ, show what differs and submit nothing.",
        ),
        pairs_option(
            "--transient",
            text="A value that the chaincode sees and the ledger does not; repeatable.",
        ),
        click.argument("args", nargs=-1),
        click.argument("function"),
        name_argument(),
    ):
        function = add(function)
    return function


@command(
    "chaindock invoke coldchain register P1 2 8",
    "chaindock invoke coldchain record P1 -4 --as clerk --attr role=driver",
    "chaindock invoke coldchain record P1 5 --org Org2 --endorsers Org1,Org2",
    "chaindock invoke -- notes put n1 --draft--",
    cls=CallCommand,
    of_channel=True,
)
@_call_options
@list_option(
    "--endorsers",
    text="Organisations whose peers endorse; repeatable.  [default: those that the "
    "policies need]",
)
@click.option("--init", "is_init", is_flag=True, help="Initialise the chaincode.")
def invoke(session: Session, **given: Any) -> int:
    """Submit a transaction.

    Calls FUNCTION of the chaincode NAME with ARGS as you typed them, orders the
    transaction and waits until it is on the ledger. The payload goes to standard
    output.
    """
    return _call(session, "invoke", **given)


@command(
    "chaindock query coldchain parcel P1",
    "chaindock query coldchain parcel P1 --json",
    "chaindock query deals price D1 --at Org2MSP",
    cls=CallCommand,
    of_channel=True,
)
@_call_options
@click.option(
    "--at",
    metavar="MSPID",
    help="Organisation whose peer answers.  [default: that of the caller]",
)
def query(session: Session, at: str | None, **given: Any) -> int:
    """Call a function without writing to the ledger.

    Calls FUNCTION of the chaincode NAME with ARGS as you typed them. Standard output
    gets the payload and nothing else.
    """
    return _call(session, "query", endorsers=[at] if at else [], **given)


def _bytes(text: str) -> bytes:
    # Arguments from the shell need not be UTF-8; they are passed on byte by byte.
    return text.encode(errors="surrogateescape")


def _call(
    session: Session,
    verb: str,
    *,
    function: str,
    args: tuple[str, ...],
    transient: Mapping[str, str],
    compares: bool,
    **given: Any,
) -> int:
    from chaindock.operations.facade import Call

    sent = [_bytes(text) for text in (function, *args)]
    hidden = {key: _bytes(value) for key, value in transient.items()}
    call = Call(args=sent, transient=hidden, **given)
    if compares:
        _require_same_results(session, call)
    answer = session.client().call(call, verb)
    refused = int(answer["status"]) >= _ERROR_STATUS
    valid = answer["code"] in {0, None}
    payload = base64.b64decode(answer["payload"])
    status = Exit.REFUSED if refused or not valid else Exit.OK
    keys = ["payload", "status", "message", "refusals"]
    if verb == "invoke":
        keys += ["tx_id", "block", "code", "code_name", "event", "conflict", "unmet"]
    result = show.parsed(payload) if valid else None
    if session.emits({"result": result, **{key: answer[key] for key in keys}}):
        return status
    if refused:
        message = show.visible(answer["message"].replace("\n", " ")) or "no message"
        what = f"chaincode {call.name!r} answered {answer['status']}: {message}"
        show.note("error", what, "red")
    elif valid:
        show.emit_payload(payload)
    for text in answer["refusals"]:
        show.note("refused", show.one_line(text))
    if answer["block"] is not None:
        tx = f"transaction {answer['tx_id'][:12]}"
        where = f"in block {answer['block']}"
        if valid:
            click.echo(click.style(f"{tx} is valid, {where}", dim=True), err=True)
        else:
            why = f"{answer['code_name']} ({answer['code']}); nothing was written"
            show.note("error", f"{tx} {where} is not valid: {why}", "red")
            _show_reasons(answer, named=bool(call.endorsers))
    return status


def _show_reasons(answer: Mapping[str, Any], *, named: bool) -> None:
    """Say why a transaction is not valid; `named`: the user named its endorsers."""
    from chaindock.cli.blocks import reason_lines

    for line in reason_lines(answer):
        click.echo(f"       {line}", err=True)
    if hint := next_step(answer, named=named):
        show.note("hint", hint, "cyan")


def next_step(answer: Mapping[str, Any], *, named: bool) -> str:
    """Return what to do about a transaction that is not valid; "" = it is not known."""
    if answer["conflict"]:
        return "submit the transaction again: it then reads the new value"
    if answer["code"] != _POLICY_FAILURE:
        return ""
    unmet = answer["unmet"] or {}
    if unmet and unmet["policy"] is None:
        return "submit the transaction again: the new policy then chooses who endorses"
    stopped = unmet.get("stopped") or ()
    starts = ", ".join(f"chaindock org start {one}" for one in stopped)
    hint = f"start the peers that are stopped, too: {starts}"
    return hint if starts and not named else _POLICY_HINTS[named]


def _require_same_results(session: Session, call: Call) -> None:
    from chaindock.cli.keys import escaped, preview, shown
    from chaindock.errors import NotDeterministic

    found = session.client().call(call, "compare")["differences"]
    if not found:
        told = "the results of all runs are equal"
        return click.echo(click.style(told, dim=True), err=True)
    lines = []
    for one in found:
        key = base64.b64decode(one["key"])
        name = shown(key.decode(errors="replace"))
        if one["collection"]:
            name = f"key with the hash {key.hex()}"
        where = escaped(" ".join(filter(None, (one["namespace"], one["collection"]))))
        lines.append(" ".join(filter(None, (one["what"], where, name))) + ":")
        for value in one["values"][:_SHOWN_VALUES]:
            told = "(absent)" if value is None else preview(value) or '""'
            lines.append(f"  {told}")
    told = f"chaincode {call.name!r} gives other results from run to run; nothing was "
    raise NotDeterministic(
        "\n".join([told + "submitted", *lines]),
        hint="take the time from the transaction (GetTxTimestamp), sort the keys of maps, "
        "use no random numbers, and format without time zone and locale of the machine",
        differences=found,
    )
