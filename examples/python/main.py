"""Serve the cold-chain contract."""

import logging

from coldchain import ColdChain
from fabric_chaincode_python.fabric_contract_api import ContractChaincode

if __name__ == "__main__":
    # The shim writes every message, payload included, through this logger.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    # Address and package id come from CHAINCODE_SERVER_ADDRESS and CHAINCODE_ID.
    ContractChaincode.new_chaincode(ColdChain()).start()
