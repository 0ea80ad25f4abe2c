"""The running server that the conformance cases and the examples need."""

import os

import pytest


@pytest.fixture(scope="session")
def endpoints() -> str:
    """KVSTORE_ENDPOINTS. Missing is a failure and no skip: a suite that ran nothing has shown nothing."""
    value = os.environ.get("KVSTORE_ENDPOINTS")
    if not value:
        pytest.fail("set KVSTORE_ENDPOINTS to a running server, as in http://127.0.0.1:9090")
    return value
