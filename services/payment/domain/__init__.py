"""The rules of payment: plans, what a subscription allows and when it ends, money that adds up. Pure."""
