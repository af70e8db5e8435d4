"""Tests of one file stay in one process, so that what they share is built once."""

import pytest


def test_a_file_is_one_group(request):
    if not request.config.getoption("loadgroup", default=False):
        pytest.skip("one process, or another --dist than make test's")
    assert request.node.nodeid.endswith("::test_a_file_is_one_group@groups_test.py"), "pytest-xdist ignores its groups"
