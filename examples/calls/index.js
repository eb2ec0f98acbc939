'use strict';

const { Contract } = require('fabric-contract-api');

const PARCELS = 'coldchain';

/**
 * A warehouse that keeps its own receipts, and asks the contract of the parcels for
 * everything else. Every method is a transaction; arguments and results are text.
 */
class Warehouse extends Contract {
    constructor() {
        super('Warehouse');
    }

    /** Takes a parcel in, if the contract of the parcels says that it is intact. */
    async store(ctx, id, shelf) {
        const parcel = JSON.parse(await call(ctx, '', 'parcel', id));
        if (parcel.state !== 'intact') {
            throw new Error(`parcel ${id} is ${parcel.state}`);
        }
        const receipt = JSON.stringify({ parcel: id, shelf, from: parcel.custodian });
        await ctx.stub.putState(id, Buffer.from(receipt));
        return receipt;
    }

    /** Gives a parcel to another organisation: one transaction writes to both contracts. */
    async send(ctx, id, to) {
        await this.receipt(ctx, id);
        await ctx.stub.deleteState(id);
        // The other contract sees who signed the proposal, and decides for itself.
        return call(ctx, '', 'handover', id, to);
    }

    /** Returns where a parcel is. */
    async receipt(ctx, id) {
        const receipt = await ctx.stub.getState(id);
        if (receipt.length === 0) {
            throw new Error(`parcel ${id} is not here`);
        }
        return Buffer.from(receipt).toString();
    }

    /**
     * Tells what a temperature would do to a parcel of another channel: what the contract
     * there writes has no effect when it is called from here.
     */
    async forecast(ctx, channel, id, celsius) {
        return call(ctx, channel, 'record', id, celsius);
    }
}

/** Calls the contract of the parcels on a channel ('' = this one); returns its answer. */
async function call(ctx, channel, ...words) {
    const { status, message, payload } = await ctx.stub.invokeChaincode(PARCELS, words, channel);
    if (status >= 400) {
        // The callee's writes stay in the transaction unless this one fails, too.
        throw new Error(message);
    }
    return Buffer.from(payload).toString();
}

module.exports.contracts = [Warehouse];
