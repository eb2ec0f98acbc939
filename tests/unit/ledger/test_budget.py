"""Memory that the node holds for a contract is counted and bounded."""

import pytest

from chaindock.errors import BudgetExceeded
from chaindock.ledger.budget import Budget


def test_the_refusal_names_the_limit_and_what_was_found():
    budget = Budget(1000, "transaction T")
    budget.take(600)
    with pytest.raises(BudgetExceeded, match=r"transaction T .* 1001 bytes.* 1000"):
        budget.take(401)
    assert budget.held == 600


def test_a_refusal_of_the_parent_takes_nothing():
    contract = Budget(1000, "contract")
    first, second = (Budget(800, "transaction", contract) for _ in range(2))
    first.take(700)
    with pytest.raises(BudgetExceeded, match="contract"):
        second.take(400)
    assert (first.held, second.held, contract.held) == (700, 0, 700)


def test_what_a_transaction_gives_back_its_contract_has_again():
    contract = Budget(1000, "contract")
    transaction = Budget(800, "transaction", contract)
    transaction.take(700)
    transaction.give_back(200)
    assert (transaction.held, contract.held) == (500, 500)
    transaction.give_back()
    transaction.give_back()
    transaction.give_back(100)
    assert (transaction.held, contract.held) == (0, 0)
