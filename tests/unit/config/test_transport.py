"""How gRPC is set up before it is imported."""

import subprocess
import sys

_PROGRAM = """
from chaindock.config.environment import prepare_transport
prepare_transport()
import grpc
grpc.insecure_channel("127.0.0.1:1").close()
"""


def test_grpc_knows_the_settings_that_it_is_given() -> None:
    """It would write `Unknown experiment` at each start of a node."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, check=True, env={}
    )
    assert done.stderr == b""
