"""Other people's APIs and the way to the other services."""
