'use strict';

const { Contract } = require('fabric-contract-api');
const { KeyEndorsementPolicy } = require('fabric-shim');

/**
 * Titles to something. Each has owners, organisations all of which must endorse what
 * changes it. Every method is a transaction; arguments and results are text.
 */
class Titles extends Contract {
    constructor() {
        super('Titles');
    }

    /** Registers a title of the caller's organisation. */
    async register(ctx, id, text) {
        const known = await ctx.stub.getState(id);
        if (known.length > 0) {
            throw new Error(`title ${id} is registered already`);
        }
        await ctx.stub.putState(id, Buffer.from(text));
        await own(ctx, id, [ctx.clientIdentity.getMSPID()]);
    }

    /** Changes the text. Whether its owners endorsed that, the ledger decides. */
    async change(ctx, id, text) {
        await this.title(ctx, id);
        await ctx.stub.putState(id, Buffer.from(text));
    }

    /** Gives a title to other organisations, separated by commas. */
    async transfer(ctx, id, owners) {
        await this.title(ctx, id);
        await own(ctx, id, owners.split(','));
    }

    /** Takes the policy away: what holds for the contract holds for the title again. */
    async release(ctx, id) {
        await this.title(ctx, id);
        await ctx.stub.setStateValidationParameter(id, Buffer.from(''));
    }

    /** Returns the text of a title. */
    async title(ctx, id) {
        const text = await ctx.stub.getState(id);
        if (text.length === 0) {
            throw new Error(`title ${id} is not registered`);
        }
        return Buffer.from(text).toString();
    }

    /** Returns the organisations that own a title. */
    async owners(ctx, id) {
        const policy = await ctx.stub.getStateValidationParameter(id);
        if (!policy || policy.length === 0) {
            return '[]';
        }
        return JSON.stringify(new KeyEndorsementPolicy(policy).listOrgs());
    }
}

/** Has changes of a key endorsed by a peer of each organisation. */
async function own(ctx, id, mspids) {
    const policy = new KeyEndorsementPolicy();
    policy.addOrgs('PEER', ...mspids);
    await ctx.stub.setStateValidationParameter(id, policy.getPolicy());
}

module.exports.contracts = [Titles];
