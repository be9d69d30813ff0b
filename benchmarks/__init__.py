"""`make bench`: each figure against a baseline of the same run, for these machines are shared and noisy."""
