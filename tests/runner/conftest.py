"""What tests of the runner share."""

from pathlib import Path

import pytest

from squeeze.runner.attempt import Attempt
from tests.runner.attempts import complete


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """A complete attempt."""
    return complete(tmp_path)
