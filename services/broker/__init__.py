"""broker: orders that never double and positions that never drift. So far its rules only, in `domain`."""
