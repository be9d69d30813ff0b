"""What a Kafka that we claim to support lacks: the one table. The README says each sentence about the embedded one.

A lack is `xfail(strict=True)`: when the Kafka learns it, the suite fails until the sentence is taken out.
"""

from typing import Final

LACKS: Final[dict[str, dict[str, str]]] = {
    "apache": {},
    "embedded": {
        "test_a_member_that_dies_is_replaced_when_its_session_is_over": "It never expires a dead group member",
        "test_a_topic_that_nobody_made_is_not_made_by_asking": "It makes any topic that it is asked for",
        "test_a_batch_that_counts_wrongly_is_refused": "It takes a record batch that counts its records wrongly",
        "test_a_fetch_waits_for_records": "It answers a fetch at once, with nothing",
    },
    "memory": {
        "test_a_record_that_is_larger_is_refused_and_told": "One limit for all topics, that of the producer",
        "test_a_record_tells_when_it_was_sent": "Records carry no time",
    },
}
"""Kafka -> name of a test -> what it lacks, in the README's words."""
