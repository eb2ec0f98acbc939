'use strict';

const { Contract } = require('fabric-contract-api');

/** Marbles as JSON, found by what it says. Every method is a transaction. */
class Marbles extends Contract {
    constructor() {
        super('Marbles');
    }

    /** Puts a marble on the ledger. */
    async add(ctx, id, colour, size, owner) {
        const marble = { colour, size: Number(size), owner };
        await ctx.stub.putState(id, Buffer.from(JSON.stringify(marble)));
    }

    /** Returns the ids of an owner's marbles, the smallest first: by the index. */
    async ownedBy(ctx, owner) {
        const query = { selector: { owner }, sort: [{ owner: 'asc' }, { size: 'asc' }] };
        return JSON.stringify(await keys(ctx.stub.getQueryResult(JSON.stringify(query))));
    }

    /** Returns what any query finds, as JSON by id. */
    async find(ctx, query) {
        const found = {};
        for await (const row of ctx.stub.getQueryResult(query)) {
            found[row.key] = JSON.parse(row.value.toString());
        }
        return JSON.stringify(found);
    }

    /** Returns one page of ids, and the bookmark of the next one. */
    async page(ctx, query, size, bookmark) {
        const pages = await ctx.stub.getQueryResultWithPagination(query, Number(size), bookmark);
        const ids = [];
        for (let next = await pages.iterator.next(); !next.done; next = await pages.iterator.next()) {
            ids.push(next.value.key);
        }
        await pages.iterator.close();
        return JSON.stringify({ ids, bookmark: pages.metadata.bookmark });
    }

    /** Gives all marbles of one owner to another one. */
    async giveAll(ctx, from, to) {
        const query = JSON.stringify({ selector: { owner: from } });
        for await (const row of ctx.stub.getQueryResult(query)) {
            const marble = { ...JSON.parse(row.value.toString()), owner: to };
            await ctx.stub.putState(row.key, Buffer.from(JSON.stringify(marble)));
        }
    }
}

async function keys(rows) {
    const found = [];
    for await (const row of rows) {
        found.push(row.key);
    }
    return found;
}

exports.contracts = [Marbles];
