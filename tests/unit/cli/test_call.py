"""`invoke` and `query`, as a user and as a script see them."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest

from chaindock.cli.ps import ago
from chaindock.cli.show import parsed, seconds


def test_query_prints_the_payload_and_nothing_else(run, basic):
    run("invoke", "basic", "put", "k", '{"a": 1}')
    result = run("query", "basic", "get", "k")
    assert result.exit_code == 0
    assert result.stdout_bytes == b'{"a": 1}'
    assert result.stderr == ""


def test_payload_goes_through_byte_by_byte(run, basic):
    basic.state["k"] = bytes(range(256))
    assert run("query", "basic", "get", "k").stdout_bytes == bytes(range(256))


def test_invoke_says_where_it_was_committed_on_standard_error(run, basic):
    result = run("invoke", "basic", "echo", "x")
    assert result.stdout == "x"
    assert result.stderr == "transaction abababababab is valid, in block 1\n"


def test_json_has_no_characters_that_a_terminal_obeys(run, basic):
    basic.state["k"] = "é \x1b[2J \x9b31m \u202e".encode()
    shown = run("query", "--json", "basic", "get", "k").stdout
    assert json.loads(shown)["result"] == "é \x1b[2J \x9b31m \u202e"
    assert not {"\x1b", "\x9b", "\u202e"} & set(shown)


def test_json_of_a_query_has_result_and_payload(run, basic):
    basic.state["k"] = b'{"a": [1, null]}'
    body = json.loads(run("query", "--json", "basic", "get", "k").stdout)
    assert body == {
        "result": {"a": [1, None]},
        "payload": base64.b64encode(b'{"a": [1, null]}').decode(),
        "status": 200,
        "message": "",
        "refusals": [],
    }


def test_json_of_an_invoke_has_the_commit_too(run, basic):
    body = json.loads(run("invoke", "basic", "echo", "x", "--json").stdout)
    assert body["result"] == "x"
    assert body["tx_id"] == "ab" * 32
    assert (body["block"], body["code"], body["code_name"]) == (1, 0, "VALID")


@pytest.mark.parametrize(
    ("payload", "result"),
    [
        (b"", None),
        (b"5", 5),
        (b"text", "text"),
        (b"\xff", None),
        (b"NaN", "NaN"),
        (b"1e999", "1e999"),
        (b"[" * 100_000, "[" * 100_000),
        (b"9" * 5000, "9" * 5000),
        ('"\N{SNOWMAN}"'.encode(), "\N{SNOWMAN}"),
    ],
)
def test_result_is_json_where_it_is_json_and_text_where_it_is_text(payload, result):
    assert parsed(payload) == result
    json.dumps(parsed(payload), allow_nan=False)


def test_error_of_the_chaincode_ends_with_1_and_its_message(run, basic):
    for verb in ("query", "invoke"):
        result = run(verb, "basic", "get", "nothing")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "chaincode 'basic' answered 500: there is no nothing" in result.stderr


def test_error_of_the_chaincode_has_the_same_json(run, basic):
    result = run("query", "basic", "get", "nothing", "--json")
    assert result.exit_code == 1
    body = json.loads(result.stdout)
    assert (body["status"], body["message"]) == (500, "there is no nothing")
    assert result.stderr == ""


def test_invalid_transaction_ends_with_1_and_its_code(run, basic):
    """A transaction that did not count has no result on standard output."""
    result = run("invoke", "basic", "conflict", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "MVCC_READ_CONFLICT (11)" in result.stderr
    assert "nothing was written" in result.stderr
    result = run("invoke", "basic", "conflict", "x", "--json")
    assert result.exit_code == 1
    body = json.loads(result.stdout)
    assert (body["code"], body["result"]) == (11, None)


def test_what_the_node_refused_is_told_beside_the_answer(run, basic):
    """A contract that swallows our error gives an answer; the refusal is shown too."""
    for verb in ("query", "invoke"):
        result = run(verb, "basic", "refuse", "answer")
        assert (result.exit_code, result.stdout) == (0, "answer")
        assert "refused: rich queries are not yet supported\n" in result.stderr
        body = json.loads(run(verb, "basic", "refuse", "answer", "--json").stdout)
        assert body["refusals"] == ["rich queries are not yet supported"]


def test_broken_call_ends_with_1_and_a_json_error(run, basic):
    assert run("query", "basic", "crash").exit_code == 1
    result = run("query", "basic", "crash", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "chaincode-error"


def test_arguments_arrive_as_typed(run, basic):
    words = ["-5", "-", "", "-.5", "a b", "--", "--json", "-x", "{}"]
    result = run("query", "basic", "echo", *words)
    # The first -- ends the options, as everywhere.
    assert result.stdout == "-5|-||-.5|a b|--json|-x|{}"


def test_options_may_stand_anywhere_before_the_dashes(run, basic):
    for line in (
        ["query", "--as", "clerk", "basic", "caller"],
        ["query", "basic", "caller", "--as", "clerk"],
        ["query", "basic", "--as", "clerk", "caller"],
    ):
        assert run(*line).stdout.startswith("clerk ")


def test_unknown_option_is_not_an_argument(run, basic):
    result = run("query", "basic", "echo", "--jsn")
    assert result.exit_code == 2
    assert "put -- before" in result.stderr
    assert basic.calls == []


def test_caller_transient_init_and_timeout_reach_the_node(run, basic):
    result = run(
        *("invoke", "basic", "caller", "--as", "clerk", "--attr", "role=a=b"),
        *("--transient", "t=x y", "--transient", "u=", "--init", "--timeout", "2.5"),
    )
    assert result.stdout == "clerk role=a=b t=x y u= init=True timeout=2.5"


@pytest.mark.parametrize("bad", ["novalue", "=x"])
def test_pairs_need_key_and_value(run, bad):
    result = run("query", "basic", "f", "--transient", bad)
    assert result.exit_code == 2
    assert "expected KEY=VALUE" in result.stderr


def test_user_without_a_name_given_is_user1(run, basic):
    assert run("query", "basic", "caller").stdout == "User1 init=False timeout=None"


def test_unknown_chaincode_ends_with_5_and_a_hint(run, node):
    result = run("query", "nobody", "f")
    assert result.exit_code == 5
    assert (
        result.stderr == "error: chaincode 'nobody' is not deployed\nhint: deploy it\n"
    )


def test_without_a_node_it_ends_with_3_and_the_way_to_get_one(run, home):
    for line in (
        ["query", "basic", "f"],
        ["ps"],
        ["deploy", str(home)],
        ["logs", "a"],
        ["status"],
    ):
        result = run(*line)
        assert result.exit_code == 3
        assert f"no node is running in '{home}'" in result.stderr
        assert "chaindock up -d" in result.stderr


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0412, "41 ms"), (3.21, "3.2 s"), (74.4, "74 s"), (303, "5 min 3 s")],
)
def test_durations_are_as_exact_as_people_need(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("spent_s", "text"), [(5, "5 s"), (300, "5 min"), (7300, "2 h"), (200_000, "2 d")]
)
def test_since_is_a_rough_time(spent_s, text):
    then = datetime.now(UTC) - timedelta(seconds=spent_s)
    assert ago(then.isoformat()) == text
    assert ago(None) == ago("yesterday") == "-"


def test_results_that_differ_are_shown_and_not_submitted(run, basic):
    result = run("invoke", "basic", "random", "--check-determinism")
    assert (result.exit_code, result.stdout) == (1, "")
    assert (
        "error: chaincode 'basic' gives other results from run to run" in result.stderr
    )
    assert r"write basic k\x1b:" in result.stderr
    assert "         1\n" in result.stderr  # as a whole, so without an ellipsis
    assert "(absent)" in result.stderr
    assert "\x1b" not in result.stderr
    assert "hint: take the time from the transaction" in result.stderr
    assert basic.calls == []
    body = json.loads(
        run("query", "basic", "random", "--check-determinism", "--json").stdout
    )
    assert body["error"] == "not-deterministic"
    assert [one["what"] for one in body["facts"]["differences"]] == [
        "response",
        "write",
    ]


def test_results_that_do_not_differ_are_submitted(run, basic):
    result = run("invoke", "basic", "echo", "x", "--check-determinism")
    assert (result.exit_code, result.stdout) == (0, "x")
    assert result.stderr.startswith("the results of all runs are equal\n")


def test_endorsers_may_be_given_together_or_one_by_one(run, basic):
    run("invoke", "basic", "echo", "--endorsers", "A,B", "--endorsers", "C")
    run("invoke", "basic", "echo")
    assert [call.endorsers for call in basic.calls] == [["A", "B", "C"], []]


def test_a_policy_failure_says_which_and_who_endorsed(run, basic):
    told = run("invoke", "basic", "forbidden").stderr
    assert "policy of basic: AND('A.peer')\n       endorsed by: B.peer" in told
    assert "a key or a collection can have a policy of its own" in told


@pytest.mark.parametrize("verb", ["invoke", "query"])
def test_words_of_the_peer_command_get_the_form_of_this_one(run, basic, verb):
    words = ("-C", "mychannel", "-n", "basic", "-c", '{"Args":["get","k"]}')
    result = run(verb, *words)
    assert result.exit_code == 2
    assert f"chaindock {verb} NAME FUNCTION ARGS... [--channel NAME]" in result.stderr
    assert "put -- before" not in result.stderr


@pytest.mark.parametrize("value", ["nan", "+NaN", "inf", "1e999", "-1", "1m", ""])
@pytest.mark.parametrize("words", [("query", "cc", "f"), ("down",)])
def test_a_time_limit_is_a_number_of_seconds(run, words, value):
    result = run(*words, "--timeout", value)
    assert result.exit_code == 2
    assert "Invalid value for '--timeout': " in result.stderr
    assert "number of seconds" in result.stderr or "in the range" in result.stderr
