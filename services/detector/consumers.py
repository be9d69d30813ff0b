"""Door 1, Kafka: which events the detector handles, and with what."""

from services.detector.service import Detector
from shared.contracts.data import ChainCollected
from shared.messaging.consumer import Consumer


def table(detector: Detector) -> Consumer:
    """Return the detector's one consumer."""
    consumer = Consumer("detector.chains")
    consumer.on_batch(ChainCollected, detector.detect)
    return consumer
