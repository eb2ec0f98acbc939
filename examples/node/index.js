'use strict';

const { ColdChain } = require('./lib/coldchain');

// fabric-chaincode-node serves every contract that is listed here.
module.exports.contracts = [ColdChain];
