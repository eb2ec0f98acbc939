"""`connect` and `env`: what applications and the `peer` command need to reach the node."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command, name_argument

SNIPPETS: Final = {"node": "node.mjs", "go": "main.go", "java": "App.java"}
"""Language → file with a program; `$word` stands for a fact in quotation marks.

Lines that begin with `//mutual` are for mutual TLS alone.
"""
_org_option = click.option(
    "--org", metavar="ORG", help="Organisation.  [default: the node's first]"
)


def _user_option(user: str) -> Callable[..., Any]:
    return click.option(
        "--user",
        "--as",
        default=user,
        show_default=True,
        metavar="USER",
        help="User; created on first use.",
    )


def _shell_option(function: Any) -> Any:
    kinds = click.Choice(["sh", "bash", "zsh", "fish"])
    text = "Shell that is to read the lines."
    return click.option(
        "--shell", type=kinds, default="sh", show_default=True, help=text
    )(function)


@command(
    "chaindock connect basic",
    "chaindock connect basic --lang node > app.mjs",
    "chaindock connect basic --org Org2 --user clerk --json",
    of_channel=True,
)
@name_argument()
@_org_option
@_user_option("User1")
@click.option(
    "--lang",
    type=click.Choice(list(SNIPPETS)),
    help="Print a program in this language, and nothing else.",
)
def connect(
    session: Session, name: str, org: str | None, user: str, lang: str | None
) -> None:
    """Show what an application needs to call a contract.

    Writes connection profiles (JSON and YAML) for older client libraries to the directory
    `connections` of the home, too.
    """
    found = session.client().post("connections", user=user, org=org)
    _require(session, name, found["channel"])
    program = snippet(lang, name, found) if lang else ""
    if session.emits({**found, "contract": name, "program": program}):
        return
    if lang:
        click.echo(program, nl=False)
        return
    show.pairs(
        [
            ("contract", f"{name} on channel {found['channel']}"),
            ("address", found["address"]),
            ("TLS name", found["tls_name"] or "no TLS"),
            ("TLS CA", found["ca"] or "-"),
            ("MSP", found["mspid"]),
            ("certificate", found["certificate"]),
            ("private key", found["key"]),
            *(
                (f"TLS {name}", path)
                for name, path in (found["client_tls"] or {}).items()
            ),
            ("profile", found["profile"]),
        ]
    )
    who = {"--org": org, "--user": user if user != "User1" else None}
    told = "".join(f" {key} {one}" for key, one in who.items() if one)
    words = session.words(f"connect {name}{told} --lang {'|'.join(SNIPPETS)}")
    click.echo(f"a program that does this: {words}", err=True)


def _require(session: Session, name: str, channel: str) -> None:
    """Raise NotFound when there is no such contract on the channel."""
    from chaindock.errors import NotFound

    found = session.client().ps()
    deployed = [one["name"] for one in found if one["channel"] == channel]
    if name not in deployed:
        known = f"; there are {', '.join(deployed)}" if deployed else ""
        hint = session.words(f"deploy DIR --name {name}")
        other = next((one["channel"] for one in found if one["name"] == name), None)
        if other is not None:
            hint = f"it is on another channel: --channel {other}"
        raise NotFound(
            f"no chaincode {name!r} is deployed on channel {channel!r}{known}",
            hint=hint,
            name=name,
        )


def snippet(lang: str, name: str, found: Mapping[str, Any]) -> str:
    """Return a program that calls the contract `name`. Raises: Unsupported: no TLS."""
    import json
    import re
    from importlib.resources import files
    from string import Template

    from chaindock.errors import Unsupported

    if not found["ca"]:
        raise Unsupported(
            "the programs are for a node with TLS, and this node has none",
            hint=f"give the client insecure credentials for {found['address']}, or start "
            "the node without peer.tls.enabled: false",
        )
    text = files("chaindock.cli").joinpath("snippets", SNIPPETS[lang]).read_text()
    pair = found["client_tls"] or {}
    kept = r"\1\2" if pair else ""
    text = re.sub(r"^(\s*)//mutual (.*\n)", kept, text, flags=re.MULTILINE)
    facts = {f"tls_{key}": path for key, path in pair.items()}
    # What JSON quotes is a string in each of these languages, too.
    quoted = {
        key: json.dumps(value, ensure_ascii=False)
        for key, value in {**found, **facts, "contract": name}.items()
    }
    return Template(text).substitute(quoted, name=name)


# --- lines for a shell ---------------------------------------------------------------


@click.group()
def env() -> None:
    """Print variables for applications and the peer command."""


env_command = partial(command, group=env, of_channel=True)


@env_command(
    'eval "$(chaindock env peer)"              # Admin of the first organisation',
    'eval "$(chaindock env peer --org Org2)"',
    "chaindock env peer --shell fish | source",
)
@_org_option
@_user_option("Admin")
@_shell_option
def env_peer(session: Session, org: str | None, user: str, shell: str) -> None:
    """Print the variables with which the `peer` command reaches the node.

    The command then acts as a user of an organisation, by default as the admin. The last
    line, a comment, shows the options that name the orderer.
    """
    found = session.client().post("connections", user=user, org=org)
    orderer = found["orderer"]
    pair = found["client_tls"] or {}
    variables = {
        "FABRIC_CFG_PATH": found["peer_config"],
        "CORE_PEER_LOCALMSPID": found["mspid"],
        "CORE_PEER_MSPCONFIGPATH": found["msp"],
        "CORE_PEER_ADDRESS": found["address"],
        "CORE_PEER_TLS_ENABLED": str(bool(found["ca"])).lower(),
        "CORE_PEER_TLS_ROOTCERT_FILE": found["ca"],
        "CORE_PEER_TLS_CLIENTAUTHREQUIRED": "true" if pair else None,
        "CORE_PEER_TLS_CLIENTCERT_FILE": pair.get("certificate"),
        "CORE_PEER_TLS_CLIENTKEY_FILE": pair.get("key"),
        # It would count for the peers of all organisations.
        "CORE_PEER_TLS_SERVERHOSTOVERRIDE": None,
        "ORDERER_ADDRESS": orderer["address"],
        "ORDERER_CA": orderer["ca"],
    }
    _print(session, shell, variables, f"peer … {' '.join(_orderer_flags(found))}")


def _orderer_flags(found: Mapping[str, Any]) -> Iterator[str]:
    yield '-o "$ORDERER_ADDRESS"'
    if found["ca"]:
        name = found["orderer"]["tls_name"]
        yield f'--tls --cafile "$ORDERER_CA" --ordererTLSHostnameOverride {name}'
    if found["client_tls"]:
        yield '--clientauth --certfile "$CORE_PEER_TLS_CLIENTCERT_FILE"'
        yield '--keyfile "$CORE_PEER_TLS_CLIENTKEY_FILE"'
    yield f"-C {found['channel']}"


@env_command(
    'eval "$(chaindock env app basic)"',
    'eval "$(chaindock env app basic --org Org2 --user clerk)"',
)
@name_argument()
@_org_option
@_user_option("User1")
@_shell_option
def env_app(
    session: Session, name: str, org: str | None, user: str, shell: str
) -> None:
    """Print the variables that Fabric's sample applications read.

    The contract NAME may be deployed later.
    """
    found = session.client().post("connections", user=user, org=org)
    variables = {
        "PEER_ENDPOINT": found["address"],
        "PEER_HOST_ALIAS": found["tls_name"],
        "TLS_CERT_PATH": found["ca"],
        "MSP_ID": found["mspid"],
        "CERT_DIRECTORY_PATH": f"{found['msp']}/signcerts",
        "KEY_DIRECTORY_PATH": f"{found['msp']}/keystore",
        "CHANNEL_NAME": found["channel"],
        "CHAINCODE_NAME": name,
    }
    _print(session, shell, variables)
    if found["client_tls"]:
        text = "the node asks for a client certificate, which these do not name; see"
        click.echo(f"{text}: {session.words(f'connect {name}')}", err=True)


def _print(
    session: Session, shell: str, variables: Mapping[str, str | None], note: str = ""
) -> None:
    """Print the variables; one without a value is removed, as another network's may be set."""
    import shlex

    given = {name: value for name, value in variables.items() if value is not None}
    if session.emits(given):
        return
    for name, value in variables.items():
        if value is None:
            click.echo(f"{'set -e' if shell == 'fish' else 'unset'} {name}")
        elif shell == "fish":
            quoted = value.replace("\\", "\\\\").replace("'", "\\'")
            click.echo(f"set -gx {name} '{quoted}'")
        else:
            click.echo(f"export {name}={shlex.quote(value)}")
    if note:
        click.echo(f"# {note}")
    if show.is_terminal():
        line = shlex.join(["chaindock", *sys.argv[1:]])
        sets = f"{line} | source" if shell == "fish" else f'eval "$({line})"'
        click.echo(f"shown, not set; to set them in this shell: {sets}", err=True)
