"""What a test does that needs a tool which cannot be had."""

from typing import NoReturn

import pytest

from deploy.tools import ToolMissing, strict


def without(missing: ToolMissing) -> NoReturn:
    """Skip the test and say why; where everything has to be checked (OPENBELL_CHECK_STRICT), fail it."""
    if strict():
        pytest.fail(str(missing))
    pytest.skip(str(missing))
