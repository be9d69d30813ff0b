"""The bodies that operators send."""

import pytest
from pydantic import ValidationError

from shared.http.orders import DiscardMany, RetryMany
from shared.messaging.consumer import Policy


def test_the_largest_retry_leaves_room_before_its_consumer_stands_still():
    largest = Policy().max_waiting // 2
    assert RetryMany(code="X", cap=largest).cap == largest
    with pytest.raises(ValidationError, match="cap"):
        RetryMany(code="X", cap=largest + 1)


def test_a_bulk_discard_takes_a_rate():
    assert DiscardMany(code="X", reason="old", rate=5).rate == 5
    with pytest.raises(ValidationError, match="rate"):
        DiscardMany(code="X", reason="old", rate=0)
