"""What makes an option contract unusual, how unusual it is, and who leads the board. Pure arrays, no I/O.

`rule` (what counts) > `snapshots` (what changed) > `scoring` (how much) > `board` (who leads). A batch of
chains is one struct of arrays, whatever the number of underlyings: each step is a handful of NumPy or Arrow
calls over all contracts at once. What would surprise you: a broken row never costs its chain. It is left out
and counted by reason, and the rest is detected.
"""
