"""broker: executes orders at brokerages and exchanges, and keeps positions in line with them.

Owns     schema `broker`: accounts, orders, what is to be said to venues, facts and positions, flags, halts,
         credentials (encrypted), callbacks, the paper venue
Reads    broker.commands (OrderRequested, ReplaceRequested, CancelRequested, CloseRequested), data.quotes (QuoteTaken),
         data.pairs (PairQuoted), data.chains (ChainCollected), payment.subscriptions (SubscriptionChanged),
         api.users (UserSignedUp)
Publishes broker.commands (the same four), broker.orders (OrderChanged, OrderRejected, OrderFilled, OrderFlagged),
         broker.positions (PositionChanged, PositionsDrifted), api.audit (ActionAudited)
Serves   /broker: accounts, credentials, orders, positions, halt, OAuth, callbacks

An order's id is its client order id at the venue. Nothing is live unless the account and the deployment both say so.
"""

from typing import Final

from shared.contracts.api import ActionAudited, UserSignedUp
from shared.contracts.base import Event
from shared.contracts.broker import (
    CancelRequested,
    CloseRequested,
    OrderChanged,
    OrderFilled,
    OrderFlagged,
    OrderRejected,
    OrderRequested,
    PositionChanged,
    PositionsDrifted,
    ReplaceRequested,
)
from shared.contracts.data import ChainCollected
from shared.contracts.payment import SubscriptionChanged
from shared.contracts.quotes import PairQuoted, QuoteTaken

OWNS: Final = "broker"
READS: Final[tuple[type[Event], ...]] = (
    OrderRequested,
    ReplaceRequested,
    CancelRequested,
    CloseRequested,
    QuoteTaken,
    PairQuoted,
    ChainCollected,
    SubscriptionChanged,
    UserSignedUp,
)
PUBLISHES: Final[tuple[type[Event], ...]] = (
    OrderRequested,
    ReplaceRequested,
    CancelRequested,
    CloseRequested,
    OrderChanged,
    OrderRejected,
    OrderFilled,
    OrderFlagged,
    PositionChanged,
    PositionsDrifted,
    ActionAudited,
)
