"""Use cases of payment."""
