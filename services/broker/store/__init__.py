"""The brokerage's tables and queries."""
