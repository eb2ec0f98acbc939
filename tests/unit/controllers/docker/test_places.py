"""Where a build container has what a plan names."""

from __future__ import annotations

from chaindock.controllers.docker.places import build_places


def test_in_a_container_programs_are_on_the_path_and_the_rest_lies_together():
    assert build_places().fill("{tool:go} {input}/src {output} {cache:go-mod}") == (
        "go /chaincode/input/src /chaincode/output /chaincode/cache/go-mod"
    )
