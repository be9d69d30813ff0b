"""Door 1, Kafka: what is handled, and by what."""

from services.broker.service.accounts import Accounts
from services.broker.service.chains import Chains
from services.broker.service.commands import Commands
from services.broker.service.quotes import Quotes
from shared.contracts.api import UserSignedUp
from shared.contracts.broker import CancelRequested, CloseRequested, OrderRequested, ReplaceRequested
from shared.contracts.data import ChainCollected
from shared.contracts.payment import SubscriptionChanged
from shared.contracts.quotes import PairQuoted, QuoteTaken
from shared.messaging.consumer import Consumer, Policy


def tables(commands: Commands, quotes: Quotes, chains: Chains, accounts: Accounts) -> tuple[Consumer, ...]:
    """Return the service's consumers."""
    asked = Consumer("broker.commands", Policy(delays_s=(1.0, 2.0, 5.0), hold=True))
    asked.on(OrderRequested, commands.place)
    asked.on(ReplaceRequested, commands.replace)
    asked.on(CancelRequested, commands.cancel)
    asked.on(CloseRequested, commands.close)

    market = Consumer("broker.quotes")
    market.on_batch(QuoteTaken, quotes.take)

    coins = Consumer("broker.pairs")
    coins.on_batch(PairQuoted, quotes.take_pairs)

    options = Consumer("broker.chains")
    options.on_batch(ChainCollected, chains.take)

    plans = Consumer("broker.plans")
    plans.on(SubscriptionChanged, accounts.entitle)

    users = Consumer("broker.users")
    users.on(UserSignedUp, accounts.first)
    return asked, market, coins, options, plans, users
