"""The embedded ledger: blocks, world state, history, and simulations over them.

`Ledger` owns one SQLite file: a writer thread validates and commits blocks, each in one
transaction that is on disk before `commit` returns; simulations read committed
state on the event loop. Private data comes from the endorser before its block.
"""
