"""The embedded ledger: blocks, world state, history, and simulations over them.

`Ledger` owns one SQLite file: a writer thread validates and commits blocks, each in one
transaction that is on disk before `commit` returns; simulations read committed
snapshots on the event loop. Only public state can be simulated; hashes of private data
and key metadata are validated and stored at commit.
"""
