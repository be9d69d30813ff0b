"""tastytrade, through its open API: orders, positions and history over HTTP, what becomes of orders by its streamer.

    wire      tokens, requests, what its errors mean
    shapes    its orders and instruments, and ours
    history   its transactions, and what they did to positions
    stream    the account streamer
    venue     one account

What would surprise you: it has no idempotency at all. An order sent twice is two orders; our id is only a note on the
order (`external-identifier`) by which it is found again.
"""

from services.broker.adapters.tastytrade.venue import LIVE, PAPER, Hosts, Tastytrade

__all__ = ["LIVE", "PAPER", "Hosts", "Tastytrade"]
