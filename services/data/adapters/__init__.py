"""Other people's data, one file each; errors are translated at this edge."""
