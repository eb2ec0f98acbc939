'use strict';

const { createHash } = require('crypto');
const { Contract } = require('fabric-contract-api');

const PRICES = 'prices';
const APPRAISALS = 'appraisals';

/**
 * Deals that everybody may know of, at prices that are for members. Every method is a
 * transaction. Private values come in the transient map: arguments are part of the
 * transaction, which everybody can read.
 */
class Deals extends Contract {
    constructor() {
        super('Deals');
    }

    /**
     * Puts a deal on the ledger and its price, transient `price`, into a collection; the
     * event "offered" tells of the deal.
     */
    async offer(ctx, id) {
        const price = secret(ctx, 'price');
        const deal = { id, seller: ctx.clientIdentity.getMSPID() };
        await ctx.stub.putState(id, Buffer.from(JSON.stringify(deal)));
        await ctx.stub.putPrivateData(PRICES, id, price);
        ctx.stub.setEvent('offered', Buffer.from(JSON.stringify(deal)));
    }

    /** Returns a deal without its price. */
    async deal(ctx, id) {
        return text(await ctx.stub.getState(id), `there is no deal ${id}`);
    }

    /** Returns the price of a deal; for members of the collection. */
    async price(ctx, id) {
        return text(await ctx.stub.getPrivateData(PRICES, id), `${id} has no price`);
    }

    /** Returns all prices as JSON, by deal. */
    async prices(ctx) {
        const found = {};
        for await (const row of ctx.stub.getPrivateDataByRange(PRICES, '', '')) {
            found[row.key] = row.value.toString();
        }
        return JSON.stringify(found);
    }

    /**
     * Tells whether the transient `price` is the price of a deal. This takes the hash
     * alone, which is on the ledger of every organisation.
     */
    async verify(ctx, id) {
        const wanted = createHash('sha256').update(secret(ctx, 'price')).digest();
        const hash = await ctx.stub.getPrivateDataHash(PRICES, id);
        return String(Buffer.compare(wanted, Buffer.from(hash)) === 0);
    }

    /** Puts the transient `value` into a collection of admins, where it soon expires. */
    async appraise(ctx, id) {
        await ctx.stub.putPrivateData(APPRAISALS, id, secret(ctx, 'value'));
    }

    /** Returns the appraisal of a deal; for admins. */
    async appraisal(ctx, id) {
        const value = await ctx.stub.getPrivateData(APPRAISALS, id);
        return text(value, `${id} has no appraisal`);
    }

    /** Leaves a note that only the caller's organisation keeps: transient `note`. */
    async note(ctx, id) {
        const own = `_implicit_org_${ctx.clientIdentity.getMSPID()}`;
        await ctx.stub.putPrivateData(own, id, secret(ctx, 'note'));
    }

    /** Returns a note of an organisation; its own peer alone has that. */
    async noted(ctx, id, mspid) {
        const value = await ctx.stub.getPrivateData(`_implicit_org_${mspid}`, id);
        return text(value, `${mspid} has no note on ${id}`);
    }

    /** Deletes a deal and its price; former prices stay in the store of private data. */
    async close(ctx, id) {
        await ctx.stub.deleteState(id);
        await ctx.stub.deletePrivateData(PRICES, id);
    }

    /** Removes every price that a deal ever had. */
    async forget(ctx, id) {
        await ctx.stub.purgePrivateData(PRICES, id);
    }
}

function secret(ctx, name) {
    const value = ctx.stub.getTransient().get(name);
    if (!value || value.length === 0) {
        throw new Error(`expected the transient value ${name}`);
    }
    return Buffer.from(value);
}

function text(value, otherwise) {
    if (!value || value.length === 0) {
        throw new Error(otherwise);
    }
    return Buffer.from(value).toString();
}

module.exports.contracts = [Deals];
