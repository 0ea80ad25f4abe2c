"""Every example runs as it stands and prints what it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
PRINTED = {
    "quickstart": [
        "Ada True",
        "None",
        "expires within a minute: True",
        "visits: 3",
        "2 stored",
        "['examples/b', 'examples/a']",
    ],
    "ranges": ["first week: [1, 2, 3, 4, 5, 6, 7]", "newest: [31, 30, 29]", "found: examples/day/15", "days: 31"],
    "with_asyncio": ["total: 45", "removed: 10"],
    "sessions": ["stored: 1000", "refused: True", "last: 999", "removed: 1000"],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_example_prints_what_it_should(name: str, endpoints: str) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"],
        env={**os.environ, "KVSTORE_ENDPOINTS": endpoints},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == PRINTED[name]
