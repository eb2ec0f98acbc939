"""`state put`, `del`, `export`, `import`, `block cut` and `time`."""

import json

import pytest


def exported(run, *more: str):
    text = run("state", "export", "cc", *more).stdout
    return [json.loads(line) for line in text.splitlines()]


def test_put_and_del_change_the_state_in_transactions(run, ledger):
    done = run("state", "put", "cc", "k", "v1")
    assert done.exit_code == 0
    assert done.stdout == ""
    assert "is valid, in block 1" in done.stderr
    assert run("state", "get", "cc", "k").stdout == "v1"
    body = json.loads(run("state", "del", "cc", "k", "--json").stdout)
    assert (body["block"], body["code"]) == (2, 0)
    assert run("state", "get", "cc", "k").exit_code == 5


def test_every_change_is_made_as_the_named_organisation(run, ledger):
    line = '{"key": "k", "text": "v"}'
    for words in (("put", "cc", "k", "v"), ("import", "cc", "-"), ("del", "cc", "k")):
        for org in ((), ("--org", "Org2MSP")):
            assert run("state", *words, *org, input=line).exit_code == 0
    assert ledger.node.controls.orgs == [None, "Org2MSP"] * 3


def test_put_takes_numbers_bytes_of_a_file_and_composite_keys(run, ledger, tmp_path):
    assert run("state", "put", "cc", "n", "-4").exit_code == 0
    file = tmp_path / "value"
    file.write_bytes(bytes(range(256)))
    assert run("state", "put", "cc", "b", "--file", str(file)).exit_code == 0
    run("state", "put", "cc", "--composite", "reading", "P1", "5")
    run("state", "put", "cc", "--composite", "t", "--file", "-", input="piped")
    assert run("state", "get", "cc", "n").stdout == "-4"
    assert run("state", "get", "cc", "b").stdout_bytes == bytes(range(256))
    assert run("state", "get", "cc", "--composite", "reading", "P1").stdout == "5"
    assert run("state", "get", "cc", "--composite", "t").stdout == "piped"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("put", "cc", "k"), "expected KEY and VALUE"),
        (("put", "cc", "k", ""), "use `state del`"),
        (("put", "cc", "a", "b", "c"), "expected one KEY, found 2"),
        (("put", "cc", "k", "--nonsense"), "No such option"),
    ],
)
def test_wrong_words_are_usage_errors(run, ledger, words, told):
    result = run("state", *words)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_write_that_is_refused_says_so(run, ledger):
    result = run("state", "put", "cc", "refused", "v", "--channel", "mychannel")
    assert result.exit_code == 1
    assert "policy of key refused of cc: OR('Org2MSP.peer')" in result.stderr
    assert "ENDORSEMENT_POLICY_FAILURE (10); nothing was written" in result.stderr
    assert "peers that are stopped, too: chaindock org start Org2MSP" in result.stderr


def test_what_was_exported_can_be_imported_as_it_was(run, ledger, tmp_path):
    run("state", "put", "cc", "text", "caf\u00e9 \x1b[2J")
    run("state", "put", "cc", "--composite", "t", "a", "v")
    file = tmp_path / "value"
    file.write_bytes(b"\xff\x00")
    run("state", "put", "cc", "bytes", "--file", str(file))
    lines = exported(run)
    assert lines == [
        {"composite": ["t", "a"], "text": "v"},
        {"key": "bytes", "base64": "/wA="},
        {"key": "text", "text": "caf\u00e9 \x1b[2J"},
    ]
    assert "\x1b" not in run("state", "export", "cc").stdout
    assert exported(run, "--prefix", "te") == lines[2:]
    text = run("state", "export", "cc").stdout
    done = run("state", "import", "other", "-", input=text, catch_exceptions=False)
    assert "3 keys written in 1 transaction" in done.stderr
    assert run("state", "export", "other").stdout == text


def test_a_collection_is_exported_and_imported(run, ledger):
    def writes(simulator):
        simulator.put_private("cc", "prices", "k", b"\xff")
        simulator.put_private("cc", "prices", "x", b"1")

    ledger.simulate(writes)
    prices = ("--collection", "prices")
    assert exported(run) == []
    assert exported(run, *prices) == [
        {"key": "k", "base64": "/w=="},
        {"key": "x", "text": "1"},
    ]
    lines = '{"key":"k","json":null}\n{"key":"y","text":"2"}\n'
    assert run("state", "import", "cc", "-", *prices, input=lines).exit_code == 0
    assert exported(run, *prices) == [
        {"key": "x", "text": "1"},
        {"key": "y", "text": "2"},
    ]


def test_import_takes_json_and_deletes_by_null(run, ledger):
    run("state", "put", "cc", "old", "v")
    lines = (
        '{"key": "new", "json": {"b": 1, "a": [true]}}\n\n{"key": "old", "json": null}'
    )
    assert run("state", "import", "cc", "-", input=lines).exit_code == 0
    assert exported(run) == [{"key": "new", "text": '{"a":[true],"b":1}'}]


def test_import_of_many_keys_makes_several_transactions(run, ledger):
    lines = "".join(f'{{"key": "k{n:04}", "text": "v"}}\n' for n in range(2500))
    done = run("state", "import", "cc", "-", "--json", input=lines)
    assert json.loads(done.stdout) == {"keys": 2500, "transactions": 3}
    assert len(exported(run)) == 2500


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        "{}",
        '{"key": "k"}',
        '{"key": 5, "text": "v"}',
        '{"key": "k", "base64": "?"}',
        '{"composite": [], "text": "v"}',
        '{"key": "\\ud800", "text": "v"}',
    ],
)
def test_import_checks_all_lines_before_it_writes(run, ledger, line):
    good = '{"key": "k", "text": "v"}\n'
    result = run("state", "import", "cc", "-", input=good + line)
    assert result.exit_code == 5
    assert "line 2" in result.stderr
    assert exported(run) == []


def test_import_says_how_much_was_written_before_an_error(run, ledger):
    lines = "".join(f'{{"key": "k{n:04}", "text": "v"}}\n' for n in range(1000))
    lines += '{"key": "refused", "text": "v"}'
    result = run("state", "import", "cc", "-", input=lines)
    assert result.exit_code == 1
    assert "1000 of 1001 keys were written before this" in result.stderr


def test_cut_says_what_it_committed(run, ledger):
    assert "2 transactions committed" in run("block", "cut").stdout
    assert "no transaction waits" in run("block", "cut").stderr


def test_time_is_set_moved_and_reset(run, ledger):
    assert "(the time of this machine)" in run("time", "show").stdout
    assert run("time", "advance", "30d").exit_code == 0
    assert ledger.node.controls.clock_s == 30 * 86_400
    assert "1:30:00 ahead" in run("time", "advance", "1h30m").stdout
    run("time", "set", "2027-01-01")
    assert ledger.node.controls.clock_s == 1_798_761_600
    assert run("time", "set", "2027-01-01T01:00:00+01:00").exit_code == 0
    assert ledger.node.controls.clock_s == 1_798_761_600
    run("time", "reset")
    assert ledger.node.controls.clock_s == 0


@pytest.mark.parametrize(
    "words", [("set", "tomorrow"), ("advance", "5"), ("advance", "d")]
)
def test_wrong_times_are_usage_errors(run, ledger, words):
    assert run("time", *words).exit_code == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"key": "k",', "'-', line 1, is not JSON: "),
        ("5", "'-', line 1: it is no object; expected {"),
        ('{"key": "k"}', "line 1: the value is missing; expected {"),
        ('{"text": "v"}', "line 1: the key is missing; expected {"),
        ('{"key": "k", "value": "v"}', "line 1: unknown member 'value'; expected {"),
        ('{"key": "k", "text": "v", "json": 1}', "line 1: it has json and text; exp"),
        ('{"key": "k", "composite": ["t"], "text": "v"}', "it has composite and key;"),
        ('{"composite": "ta", "text": "v"}', "line 1: `composite` is no list; expect"),
        ('{"composite": [], "text": "v"}', "line 1: expected {"),
        ('{"key": "", "text": "v"}', "line 1: the key is empty; expected {"),
        ('{"key": "k", "json": NaN}', "line 1: expected {"),
    ],
)
def test_import_says_what_is_wrong_in_a_line(run, ledger, line, told):
    assert told in run("state", "import", "cc", "-", input=line).stderr


def test_time_that_is_to_go_back_is_told_how(run, ledger):
    result = run("time", "advance", "-1d")
    assert result.exit_code == 2
    assert "to go back, use `chaindock time reset`" in result.stderr
