"""Who takes the money: one file for each."""
