"""Python: what is installed, and which file is started."""

from pathlib import Path

import pytest

from chaindock.errors import SourceInvalid
from chaindock.platforms.base import BuildPlan, Connection
from chaindock.platforms.python import Python
from support.trees import make

STARTS = (
    "from fabric_chaincode_python.fabric_shim import server\n\nserver.start(object())\n"
)
NEEDS = "fabric-chaincode-python==2.5.4\n"


def plan(root: Path, files: dict[str, str]) -> BuildPlan:
    named = {f"src/{name}": text for name, text in files.items()}
    return Python().plan(make(root, named), "")


def started(root: Path, files: dict[str, str]) -> tuple[str, ...]:
    return plan(root, files).launch.argv[1:]


def test_a_virtual_environment_is_made_beside_the_source(tmp_path):
    found = plan(tmp_path, {"requirements.txt": NEEDS, "main.py": ""})
    copy, venv, install = found.steps
    assert copy.argv == ("cp", "-R", "{input}/src/.", "{output}/src")
    assert copy.cwd == "{output}/src"
    assert venv.argv == ("{tool:python3}", "-m", "venv", "{output}/venv")
    assert install.title == "pip install -r requirements.txt"
    assert install.argv[0] == "{output}/venv/bin/python"
    assert install.argv[4] == "install"
    assert install.argv[-2:] == ("-r", "requirements.txt")
    assert {"--disable-pip-version-check", "--no-input"} <= set(install.argv)
    assert install.env["PIP_CACHE_DIR"] == "{cache:pip}"
    assert install.cwd == "{output}/src"
    assert {step.phase for step in found.steps} == {"dependencies"}
    assert found.caches == ("pip",)


def test_a_python_chaincode_serves_one_transaction_at_a_time(tmp_path):
    launch = plan(tmp_path, {"main.py": ""}).launch
    assert launch.argv == ("{output}/venv/bin/python", "main.py")
    assert launch.connection is Connection.DIALLED
    assert launch.concurrency == 1
    for name, value in {
        "CHAINCODE_SERVER_ADDRESS": "{listen}",
        "CHAINCODE_ID": "{ccid}",
        "CORE_CHAINCODE_ID_NAME": "{ccid}",
        "PYTHONUNBUFFERED": "1",
    }.items():
        assert launch.env[name] == value


def test_a_project_that_says_how_it_is_built_is_installed(tmp_path):
    text = '[build-system]\nrequires = ["hatchling"]\n[project]\ndependencies = ["a"]\n'
    found = plan(tmp_path, {"pyproject.toml": text, "main.py": ""})
    assert found.steps[-1].argv[-1] == "."


def test_of_a_project_that_does_not_the_dependencies_are_installed(tmp_path):
    text = '[project]\nname = "a"\ndependencies = ["a==1", "b >= 2; python_version > \'3\'"]\n'
    found = plan(tmp_path, {"pyproject.toml": text, "main.py": ""})
    assert found.steps[-1].argv[-3:] == ("--", "a==1", "b >= 2; python_version > '3'")


def test_pinned_requirements_go_before_those_of_the_project(tmp_path):
    text = '[build-system]\nrequires = []\n[project]\ndependencies = ["a"]\n'
    files = {"pyproject.toml": text, "requirements.txt": NEEDS, "main.py": ""}
    assert plan(tmp_path, files).steps[-1].argv[-2:] == ("-r", "requirements.txt")


@pytest.mark.parametrize("text", ["", "[project]\nname = 'a'\n"])
def test_without_dependencies_nothing_is_installed(tmp_path, text):
    assert len(plan(tmp_path, {"pyproject.toml": text, "main.py": ""}).steps) == 2


@pytest.mark.parametrize(
    ("files", "argv"),
    [
        (["server.py", "app.py", "chaincode.py", "main.py"], ("main.py",)),
        (["server.py", "app.py", "chaincode.py"], ("chaincode.py",)),
        (["server.py", "app.py"], ("app.py",)),
        (["server.py", "starts.py"], ("server.py",)),
        (["other.py", "starts.py"], ("starts.py",)),
        (["src/main.py", "starts.py"], ("starts.py",)),
        (["src/main.py", "src/starts.py", "other.py"], ("src/main.py",)),
        (["src/starts.py", "src/other.py"], ("src/starts.py",)),
        (["notary/__init__.py", "notary/__main__.py"], ("-m", "notary")),
        (["src/notary/__init__.py", "src/notary/__main__.py"], ("-m", "notary")),
    ],
    ids=str,
)
def test_the_file_to_start_is_found_in_the_documented_order(tmp_path, files, argv):
    content = {name: STARTS if "starts" in name else "" for name in files}
    assert started(tmp_path, content) == argv


@pytest.mark.parametrize(
    ("entry", "argv"),
    [
        ("lib/run.py", ("lib/run.py",)),
        ("lib.run", ("-m", "lib.run")),
        ("pack", ("-m", "pack")),
        ("inner", ("-m", "inner")),
    ],
)
def test_the_entry_of_pyproject_goes_before_everything(tmp_path, entry, argv):
    files = {
        "pyproject.toml": f'[tool.chaindock]\nentry = "{entry}"\n',
        "main.py": "",
        "lib/run.py": "",
        "pack/__main__.py": "",
        "src/inner/__main__.py": "",
    }
    assert started(tmp_path, files) == argv


@pytest.mark.parametrize(
    "entry",
    ["gone.py", "../main.py", "-c", "--help.py", "a b", "/bin/x.py", "{peer}.py"],
)
def test_an_entry_that_is_not_there_is_refused(tmp_path, entry):
    files = {"pyproject.toml": f'[tool.chaindock]\nentry = "{entry}"\n', "main.py": ""}
    files |= {"--help.py": "", "{peer}.py": ""}
    with pytest.raises(SourceInvalid, match="nor a module of the project"):
        plan(tmp_path, files)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"requirements.txt": NEEDS}, "no Python file that starts"),
        ({"a.py": "print(1)\n"}, "no Python file that starts"),
        ({"-c.py": STARTS}, "no Python file that starts"),
        ({"a.py": STARTS, "b.py": STARTS}, "several files that start the shim"),
        ({"a/__main__.py": "", "b/__main__.py": ""}, "several packages"),
        ({"pyproject.toml": "[", "main.py": ""}, "not TOML"),
        ({"pyproject.toml": "a = " + "[" * 9999, "main.py": ""}, "not TOML"),
        ({"pyproject.toml": "project = 1", "a.py": ""}, "no Python file"),
        ({"pyproject.toml": "[tool.chaindock]\nentry = 1", "main.py": ""}, "entry"),
        (
            {"pyproject.toml": '[project]\ndependencies = ["-r/x"]', "main.py": ""},
            "dependencies",
        ),
        (
            {"pyproject.toml": "[project]\ndependencies = {}", "main.py": ""},
            "dependencies",
        ),
    ],
    ids=lambda one: str(one)[:60],
)
def test_what_could_not_start_is_refused_when_it_is_packaged_and_built(
    tmp_path, files, match
):
    with pytest.raises(SourceInvalid, match=match):
        plan(tmp_path / "tree", files)
    with pytest.raises(SourceInvalid, match=match):
        Python().select(make(tmp_path / "source", files))


def test_everything_but_environments_and_caches_is_selected(tmp_path):
    make(
        tmp_path,
        {
            "main.py": "",
            "requirements.txt": NEEDS,
            "pack/data.json": "",
            "pack/__pycache__/x.pyc": "",
            "old.pyc": "",
            "basic.egg-info/PKG-INFO": "",
            ".venv/pyvenv.cfg": "",
            "myenv/pyvenv.cfg": "",
            "myenv/lib/x.py": "",
        },
    )
    selection = Python().select(tmp_path)
    assert [file.name for file in selection.files] == [
        "src/main.py",
        "src/pack/data.json",
        "src/requirements.txt",
    ]
    assert (selection.import_path, selection.package_type) == ("", "python")


OUTSIDE = [
    "-r /etc/passwd",
    "-r/etc/passwd",
    "--requirement=/etc/passwd",
    "--req /etc/passwd",
    "-c ../../secret.txt",
    "--constr ../secret.txt",
    "-r \\\n  /etc/passwd",
    "-r .\\\n./secret.txt",
    "-r f\\\nile:///etc/passwd",
    "-r file:etc/passwd",
    "-r FILE:///etc/passwd",
    "-r https://example.org/with-a-file-url.txt",
    "-r ${HOME}/secret.txt",
    "-r ~/secret.txt",
    '-r "/etc/passwd"',
    "-r \\/etc/passwd",
    "-e /srv/lib",
    "-e ..",
    "-e file:///srv/lib",
    "-e git+file:///srv/repo",
    "--index-url file:///srv/simple",
    "-i /srv/simple",
    "-f /srv/wheels",
    "--find-links=../wheels",
    "/srv/a-1.0.whl",
    "../a-1.0.tar.gz",
    "a @ file:///srv/a-1.0.whl",
    "a@file:///srv/a-1.0.whl",
    "a[b]@file:///srv/a-1.0.whl",
    "a ; python_version > '3' -r /etc/passwd",
    "a\x0b-r /etc/passwd",
    "a\u2028-r /etc/passwd",
    "a 'unfinished",
]


@pytest.mark.parametrize("line", OUTSIDE)
def test_requirements_that_name_a_file_of_the_host_are_refused(tmp_path, line):
    """Issue 10, 7."""
    text = f"# pinned\n{NEEDS}\n{line}\n"
    with pytest.raises(SourceInvalid, match=r"requirements\.txt:\d+: "):
        plan(tmp_path, {"requirements.txt": text, "main.py": ""})
    with pytest.raises(SourceInvalid, match=r"requirements\.txt:\d+: "):
        Python().select(tmp_path / "src")


def test_the_line_of_a_file_of_the_host_is_named_in_included_files_too(tmp_path):
    files = {"requirements.txt": "-r reqs/base.txt\n", "main.py": ""}
    included = "# one\n\n-c ../limits.txt\n"
    limits = "a<2\n-r reqs/base.txt\n-r ../secret.txt\n"
    with pytest.raises(SourceInvalid, match=r"limits\.txt:3: '\.\./secret\.txt'"):
        plan(tmp_path, files | {"reqs/base.txt": included, "limits.txt": limits})


@pytest.mark.parametrize("coding", ["utf-7", "latin-1", "utf_16"])
def test_requirements_that_pip_would_decode_differently_are_refused(tmp_path, coding):
    text = f"# -*- coding: {coding} -*-\n+AC0-r /etc/passwd\n"
    with pytest.raises(SourceInvalid, match="expected UTF-8"):
        plan(tmp_path, {"requirements.txt": text, "main.py": ""})


def test_a_dependency_of_the_project_on_a_file_of_the_host_is_refused(tmp_path):
    text = '[project]\ndependencies = ["a @ file:///srv/a-1.0.whl"]\n'
    with pytest.raises(SourceInvalid, match=r"pyproject\.toml: .*file:///srv/a"):
        plan(tmp_path, {"pyproject.toml": text, "main.py": ""})


def test_requirements_that_include_too_much_are_refused(tmp_path):
    files = {f"{n}.txt": f"-r {n + 1}.txt\n" + "#" * 200_000 for n in range(20)}
    with pytest.raises(SourceInvalid, match="the requirement files read before it"):
        plan(tmp_path, {"requirements.txt": "-r 0.txt\n", "main.py": "", **files})


def test_requirements_that_stay_inside_are_left_to_pip(tmp_path):
    text = (
        "# coding: utf-8\n"
        "--index-url https://${TOKEN}@example.org/simple\n"
        "--extra-index-url=http://10.0.0.1:3141/root/pypi/+simple/\n"
        "--trusted-host example.org:8080\n--pre\n--no-binary :all:\n--require-hashes\n"
        "-r reqs/dev.txt # the rest\n-c limits.txt\n-f wheels\n-e .\n"
        "./lib\nlib/a-1.0-py3-none-any.whl\n"
        "a==1.0 \\\n    --hash=sha256:0a1b \\\n    --hash=sha256:0a1c\n"
        "a[x,y] ~= 1.0, !=1.1 ; python_version < '3.9' and os_name == \"posix\"\n"
        "b @ https://example.org/b-1.0.whl#sha256=00\n"
        "-e git+https://example.org/c.git@v1#egg=c\n"
        "d @ git+ssh://git@example.org/d.git\n"
    )
    files = {"reqs/dev.txt": "-r ../limits.txt\n", "limits.txt": "a<2\n"}
    found = plan(tmp_path, {"requirements.txt": text, "main.py": "", **files})
    assert found.steps[-1].title == "pip install -r requirements.txt"
