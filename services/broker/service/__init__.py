"""The brokerage's use cases."""
