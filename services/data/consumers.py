"""Door 1, Kafka: what is handled, and by what."""

from services.data.service import DataService
from shared.contracts.api import StockAdded, StockRemoved
from shared.messaging.consumer import Consumer


def tables(data: DataService) -> tuple[Consumer, ...]:
    """Return the service's consumers."""
    watchlists = Consumer("data.watchlists")
    watchlists.on(StockAdded, data.watch)
    watchlists.on(StockRemoved, data.unwatch)
    return (watchlists,)
