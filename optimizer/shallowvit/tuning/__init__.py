"""Search the depth, the blocks, the precision and the batch of the cheapest bundle that meets every budget.

A newcomer's trap: the function is ``shallowvit.tune``; this package is its config, its records and its rounds.
"""
