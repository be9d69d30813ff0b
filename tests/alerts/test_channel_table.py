"""The document of channels tells what the suite of senders shows."""

from tests.alerts.channel_table import DOCUMENT, MARK, table


def test_the_table_of_channels_is_the_one_of_the_suite() -> None:
    assert DOCUMENT.read_text().partition(MARK)[2].strip() == table().strip()
