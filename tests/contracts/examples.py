"""One hand-made event of every type: what the golden files are written from, and what round trips are tried with.

Every optional field is filled somewhere, so that a golden file shows all of its version.
"""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pyarrow as pa

from shared.contracts.alerts import (
    AlertRaised,
    AlertUpdated,
    DeliverySettled,
    DeliverySettledV1,
    NoticeDeliverySettled,
    NoticeRaised,
)
from shared.contracts.api import (
    ActionAudited,
    StockAdded,
    StockRemoved,
    StockSettingsChanged,
    UserOnboarded,
    UserSettingsChanged,
    UserSignedUp,
)
from shared.contracts.base import Event
from shared.contracts.broker import (
    CancelRequested,
    CloseRequested,
    Drift,
    LegTerms,
    OrderChanged,
    OrderFilled,
    OrderFlagged,
    OrderRejected,
    OrderRequested,
    OrderTerms,
    PositionChanged,
    PositionsDrifted,
    ReplaceRequested,
)
from shared.contracts.data import CHAIN_SCHEMA, ChainCollected, ChainHeader
from shared.contracts.detector import (
    ActivityDetected,
    LeaderboardChanged,
    LeaderboardEntry,
    ScoreParts,
    UnusualContract,
)
from shared.contracts.payment import (
    CardExpiring,
    PaymentDisputed,
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    RenewalDue,
    SubscriptionChanged,
    TrialEnding,
    WebhookReceived,
)
from shared.contracts.quotes import QuoteTaken

ID: Final = UUID("01980000-0000-7000-8000-000000000001")
TIME: Final = datetime(2026, 7, 24, 15, 32, 10, 250_000, UTC)
AS_OF: Final = datetime(2026, 7, 24, 15, 17, 9, tzinfo=UTC)
SESSION: Final = date(2026, 7, 24)
USER: Final = UUID("01980000-0000-7000-8000-0000000000aa")
ALERT: Final = UUID("0198aaaa-0000-5000-8000-000000000001")

ACCOUNT: Final = UUID("01980000-0000-7000-8000-0000000000bb")
ORDER: Final = UUID("01980000-0000-7000-8000-0000000000cc")
OTHER_ORDER: Final = UUID("01980000-0000-7000-8000-0000000000dd")

_HEADER: Final = ChainHeader(
    symbol="AAPL",
    session=SESSION,
    as_of=AS_OF,
    source="cboe",
    simulated=False,
    delay_s=900.0,
    close=213.88,
    bid=213.87,
    ask=213.9,
)
_ROWS: Final = [
    {
        "contract": "AAPL260821C00220000",
        "expiration": date(2026, 8, 21),
        "right": "C",
        "strike": 220.0,
        "bid": 3.1,
        "ask": 3.2,
        "last": 3.2,
        "volume": 18_450.0,
        "open_interest": 2_310.0,
        "iv": 0.284,
        "delta": 0.361,
        "gamma": 0.024,
        "theta": -0.11,
        "vega": 0.22,
    },
    {  # what a source may leave out is null
        "contract": "AAPL260821P00110000",
        "expiration": date(2026, 8, 21),
        "right": "P",
        "strike": 110.0,
        "bid": None,
        "ask": 0.01,
        "last": None,
        "volume": 0.0,
        "open_interest": 12.0,
        "iv": None,
        "delta": None,
        "gamma": None,
        "theta": None,
        "vega": None,
    },
]
_UNUSUAL: Final = UnusualContract(
    contract="AAPL260821C00220000",
    right="C",
    expiration=date(2026, 8, 21),
    strike=Decimal("220.0"),
    bid=Decimal("3.1"),
    ask=Decimal("3.2"),
    last=Decimal("3.2"),
    volume=18_450,
    open_interest=2_310,
    volume_oi_ratio=7.987,
    volume_change=1_200,
    premium_usd=Decimal("5904000.0"),
    dte=28,
    otm_pct=2.86,
    iv=0.284,
    side="ask",
    score=81.4,
    parts=ScoreParts(volume_oi=24.1, premium=25.0, otm=6.3, dte=8.0, side=10.0, change=8.0),
)
_ALERT: Final = {
    "id": ID,
    "time": TIME,
    "alert_id": ALERT,
    "user_id": USER,
    "rule_id": UUID("0198bbbb-0000-5000-8000-000000000001"),
    "symbol": "AAPL",
    "session": SESSION,
    "as_of": AS_OF,
    "title": "AAPL: 3 unusual contracts, score 81",
    "top_score": 81.4,
    "contract_count": 3,
    "premium_usd": Decimal("7120500.00"),
    "simulated": False,
    "notified": True,
}

_SETTLED: Final = {
    "id": ID,
    "time": TIME,
    "delivery_id": UUID("0198cccc-0000-5000-8000-000000000001"),
    "alert_id": ALERT,
    "user_id": USER,
    "channel": "discord",
    "attempts": 2,
    "detail": "",
}

_PAID: Final[dict[str, Any]] = {
    "id": ID,
    "time": TIME,
    "user_id": USER,
    "provider": "stripe",
    "reference": "in_1QaBcDeFgHiJkLmN",
    "plan": "pro",
}
_ACCOUNT: Final[dict[str, Any]] = {"id": ID, "time": TIME, "account_id": ACCOUNT, "user_id": USER}
_ORDER: Final[dict[str, Any]] = {**_ACCOUNT, "order_id": ORDER, "venue": "paper", "mode": "paper"}

EXAMPLES: Final[tuple[Event, ...]] = (
    ChainCollected(id=ID, time=TIME, header=_HEADER, contracts=pa.Table.from_pylist(_ROWS, schema=CHAIN_SCHEMA)),
    QuoteTaken(
        id=ID,
        time=TIME,
        symbol="AAPL",
        as_of=AS_OF,
        source="cboe",
        simulated=False,
        close=213.88,
        bid=213.87,
        ask=213.9,
    ),
    ActivityDetected(
        id=ID,
        time=TIME,
        symbol="AAPL",
        session=SESSION,
        as_of=AS_OF,
        source="cboe",
        simulated=False,
        delay_s=900.0,
        underlying_usd=Decimal("213.88"),
        contracts=(_UNUSUAL,),
    ),
    LeaderboardChanged(
        id=ID,
        time=TIME,
        session=SESSION,
        as_of=datetime(2026, 7, 24, 15, 18, tzinfo=UTC),
        symbols_scanned=20,
        entries=(
            LeaderboardEntry(
                rank=1,
                contract="AAPL260821C00220000",
                symbol="AAPL",
                score=81.4,
                premium_usd=Decimal("5904000.0"),
                volume=18_450,
                open_interest=2_310,
                simulated=False,
            ),
        ),
    ),
    AlertRaised.model_validate(_ALERT),
    AlertUpdated.model_validate({**_ALERT, "contract_count": 4, "notified": False}),
    DeliverySettledV1.model_validate({**_SETTLED, "status": "delivered"}),
    DeliverySettled.model_validate({**_SETTLED, "status": "sent"}),
    NoticeRaised(
        id=ID,
        time=TIME,
        notice_id=ALERT,
        user_id=USER,
        kind="order_filled",
        title="Bought 10 AAPL at 100.02 (paper)",
        lines=("Nothing of the order is left.",),
        at=TIME,
    ),
    NoticeDeliverySettled(
        id=ID,
        time=TIME,
        delivery_id=UUID("0198cccc-0000-5000-8000-000000000002"),
        notice_id=ALERT,
        user_id=USER,
        channel="email",
        status="failed",
        attempts=1,
        detail="the mail server refused the message: 554",
    ),
    UserSignedUp(id=ID, time=TIME, user_id=USER, email="ada@example.com", role="user"),
    UserOnboarded(id=ID, time=TIME, user_id=USER, investing_style="trader"),
    UserSettingsChanged(
        id=ID,
        time=TIME,
        user_id=USER,
        timezone="America/New_York",
        alerts_enabled=True,
        min_score=70.0,
        min_premium_usd=Decimal("50000.00"),
    ),
    StockAdded(id=ID, time=TIME, user_id=USER, symbol="BRK.B"),
    StockSettingsChanged(id=ID, time=TIME, user_id=USER, symbol="BRK.B", alerts_enabled=False),
    StockRemoved(id=ID, time=TIME, user_id=USER, symbol="BRK.B"),
    ActionAudited(
        id=ID,
        time=TIME,
        service="detector",
        actor=str(USER),
        action="discard.failed_job",
        subject="failed_job/01980000-0000-7000-8000-0000000000ff",
        at=TIME,
        request_id="01980000000070008000000000000001",
        details={"consumer": "detector.chains", "reason": "sent by hand"},
    ),
    WebhookReceived(
        id=ID,
        time=TIME,
        provider="stripe",
        event_id="evt_1QaBcDeFgHiJkLmN",
        event_type="customer.subscription.updated",
        object_kind="subscription",
        object_id="sub_1QaBcDeFgHiJkLmN",
        customer="cus_QaBcDeFgHiJkLm",
        livemode=True,
        created=AS_OF,
    ),
    SubscriptionChanged(
        id=ID,
        time=TIME,
        user_id=USER,
        subscription_id=ALERT,
        version=3,
        provider="stripe",
        plan="pro",
        status="past_due",
        entitlements=("pro",),
        entitled_until=TIME,
        current_period_end=AS_OF,
        cancel_at_period_end=True,
    ),
    PaymentReceived(
        **_PAID,
        amount=Decimal("29.00"),
        currency="USD",
        renewal=True,
        receipt_url="https://pay.example.com/receipts/1",
    ),
    PaymentFailed(
        **_PAID,
        amount=Decimal("29.00"),
        currency="USD",
        reason="Your card was declined.",
        action_required=True,
        next_attempt_at=TIME,
        pay_url="https://pay.example.com/invoices/1",
    ),
    PaymentRefunded(**_PAID, amount=Decimal("29.00"), currency="USD"),
    PaymentDisputed(**_PAID, amount=Decimal("29.00"), currency="USD", status="opened"),
    TrialEnding(**_PAID, ends_at=TIME),
    CardExpiring(**_PAID, brand="visa", last4="4242", expires="2026-08"),
    RenewalDue(
        **_PAID,
        due_at=TIME,
        days_left=3,
        amount=Decimal("0.00045"),
        currency="BTC",
        pay_url="https://openbell.example.com/pay/crypto/invoices/1",
    ),
    OrderRequested(
        **_ACCOUNT,
        order_id=ORDER,
        terms=OrderTerms(
            legs=(
                LegTerms(symbol="SPXW260821C05000000", side="buy", opens=True, underlying="_SPX"),
                LegTerms(symbol="SPXW260821C05100000", side="sell", ratio=1, opens=True, underlying="_SPX"),
            ),
            type="limit",
            time_in_force="gtc",
            quantity=Decimal(2),
            limit=Decimal("12.50"),
            order_class="multi_leg",
            strategy="vertical",
        ),
    ),
    ReplaceRequested(
        **_ACCOUNT,
        order_id=ORDER,
        by_order_id=OTHER_ORDER,
        quantity=Decimal(3),
        limit=Decimal("213.90"),
        stop=Decimal("213.00"),
        trail_amount=Decimal("0.50"),
        trail_percent=Decimal("1.5"),
    ),
    CancelRequested(**_ACCOUNT, order_id=ORDER),
    CloseRequested(**_ACCOUNT, order_id=ORDER, symbol="AAPL"),
    OrderChanged(
        **_ORDER,
        version=4,
        state="partially_filled",
        terms=OrderTerms(
            legs=(LegTerms(symbol="AAPL", side="sell"),),
            type="trailing_stop",
            quantity=Decimal("1.5"),
            trail_percent=Decimal(2),
            extended_hours=False,
        ),
        filled=Decimal("0.5"),
        venue_order_id="7b08df51",
        replaces=OTHER_ORDER,
        replaced_by=ALERT,
        reason="late",
    ),
    OrderRejected(**_ORDER, codes=("TICK_SIZE",), reasons=("limit 213.901 is not a multiple of 0.01",)),
    OrderFilled(
        **_ORDER,
        fill_id=f"{ORDER}/0/x1",
        symbol="AAPL",
        side="buy",
        quantity=Decimal("0.5"),
        price=Decimal("213.90"),
        fee=Decimal("0.01"),
        at=AS_OF,
        whole=False,
        filled=Decimal("0.5"),
        average_price=Decimal("213.90"),
    ),
    OrderFlagged(**_ORDER, code="LATE_FILL", message="a fill came when the order was canceled"),
    PositionChanged(
        **_ACCOUNT,
        version=7,
        symbol="AAPL",
        quantity=Decimal(-10),
        average_price=Decimal("213.90"),
        realised_fifo=Decimal("12.34"),
        realised_average=Decimal("12.30"),
        fees=Decimal("0.05"),
    ),
    PositionsDrifted(**_ACCOUNT, venue="paper", drifts=(Drift(symbol="AAPL", ours=Decimal(10), venue=Decimal("7.5")),)),
)
