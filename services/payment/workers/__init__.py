"""Door 3, claimed rows and the clock."""
