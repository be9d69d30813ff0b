"""The rules of the brokerage: what an order is and becomes, what is held, what is refused. Pure."""
