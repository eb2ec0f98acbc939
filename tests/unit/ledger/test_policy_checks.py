"""A validator is asked in the block, before anything of the block is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import (
    DUPLICATE_TXID,
    ENDORSEMENT_POLICY_FAILURE,
    NOT_VALIDATED,
    VALID,
    codes,
    commit,
    judged,
    ledger_at,
    state,
)

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.ledger.transaction import ParsedTransaction
    from chaindock.ledger.validation import CommittedState


class Checks:
    """Refuses transactions that write a forbidden key; notes what it was asked."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.asked: list[str] = []
        self.seen: list[Any] = []

    def begin(self, number: int) -> None:
        self.began.append(number)

    def check(self, tx: ParsedTransaction, state: CommittedState) -> int:
        self.asked.append(tx.tx_id)
        self.seen.append((state.get_state("cc", "k"), state.metadata("cc", "", b"k")))
        writes = [key for space in tx.spaces for key, _ in space.writes]
        return ENDORSEMENT_POLICY_FAILURE if b"bad" in writes else NOT_VALIDATED


async def test_a_validator_sees_the_state_before_the_block(tmp_path: Path) -> None:
    checks = Checks()
    async with ledger_at(tmp_path) as ledger:
        ledger.check_with(checks)
        first = transaction(rwset(writes={"k": b"1"}, metadata={"k": {"n": b"m"}}))
        second = transaction(rwset(writes={"k": b"2"}))
        bad = transaction(rwset(writes={"bad": b"1"}))
        again = transaction(rwset(writes={"k": b"3"}), tx_id=bad.tx_id)
        txs = [(tx.envelope, VALID) for tx in (first, second, bad, again)]
        refused = (transaction(rwset()).envelope, ENDORSEMENT_POLICY_FAILURE)
        block = await ledger.commit(judged([*txs, refused]))
        # What a validator refuses does not use up its id.
        assert codes(block) == [
            VALID,
            VALID,
            ENDORSEMENT_POLICY_FAILURE,
            VALID,
            ENDORSEMENT_POLICY_FAILURE,
        ]
        assert checks.seen == [(None, None)] * 4
        assert state(ledger) == {"k": b"3"}
        block = await ledger.commit(judged([(bad.envelope, VALID), txs[0]]))
        assert codes(block) == [DUPLICATE_TXID, DUPLICATE_TXID]
        assert len(checks.asked) == 4  # nobody asks for an id that is on the ledger
        await commit(ledger, rwset())
        value, metadata = checks.seen[-1]
        assert (value, b"m" in (metadata or b"")) == (b"3", True)
        assert checks.began == [1, 2, 3]
