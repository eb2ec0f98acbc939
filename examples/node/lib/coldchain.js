'use strict';

const { Contract } = require('fabric-contract-api');

const INTACT = 'intact';
const BREACHED = 'breached';

// Composite keys: holding/MSP/parcel finds what an organisation holds,
// reading/parcel/time/transaction lists readings in order of time.
const HOLDING = 'holding';
const READING = 'reading';

/**
 * Parcels that must stay between two temperatures on their way. Every method is a
 * transaction; arguments and results are text.
 *
 * Results are made into JSON here: handing back objects needs class-transformer 0.4.0,
 * and npm picks 0.4.1, without the function that fabric-contract-api 2.5.8 calls.
 */
class ColdChain extends Contract {
    constructor() {
        super('ColdChain');
    }

    /** Puts a new parcel into the hands of the caller's organisation. */
    async register(ctx, id, lowest, highest) {
        if (id === '') {
            throw new Error('a parcel needs an id');
        }
        const band = { lowest: celsiusOf(lowest), highest: celsiusOf(highest) };
        if (band.lowest > band.highest) {
            throw new Error(`${lowest} to ${highest} °C is no temperature band`);
        }
        const known = await ctx.stub.getState(id);
        if (known.length > 0) {
            throw new Error(`parcel ${id} is registered already`);
        }
        const parcel = {
            id, ...band, custodian: ctx.clientIdentity.getMSPID(), state: INTACT,
        };
        await hold(ctx, parcel);
        await save(ctx, parcel);
        return JSON.stringify(parcel);
    }

    /** Gives a parcel to another organisation; only its custodian can. */
    async handover(ctx, id, to) {
        if (to === '') {
            throw new Error(`parcel ${id} needs a new custodian`);
        }
        const parcel = await inHand(ctx, id);
        if (to === parcel.custodian) {
            throw new Error(`parcel ${id} is with ${to} already`);
        }
        const before = ctx.stub.createCompositeKey(HOLDING, [parcel.custodian, id]);
        await ctx.stub.deleteState(before);
        parcel.custodian = to;
        await hold(ctx, parcel);
        await save(ctx, parcel);
        return JSON.stringify(parcel);
    }

    /**
     * Adds a temperature reading. One outside the band breaches the parcel for good, and
     * the event "breach" tells whoever listens.
     */
    async record(ctx, id, celsius) {
        const parcel = await inHand(ctx, id);
        const reading = {
            celsius: celsiusOf(celsius),
            at: ctx.stub.getDateTimestamp().toISOString(),
            by: parcel.custodian,
        };
        // A key of its own: two readings in one block do not invalidate each other,
        // because neither writes what the other has read.
        const parts = [id, reading.at, ctx.stub.getTxID()];
        const key = ctx.stub.createCompositeKey(READING, parts);
        await ctx.stub.putState(key, encode(reading));

        const fits = parcel.lowest <= reading.celsius && reading.celsius <= parcel.highest;
        if (!fits && parcel.state !== BREACHED) {
            parcel.state = BREACHED;
            const notice = { id, celsius: reading.celsius, at: reading.at };
            ctx.stub.setEvent('breach', encode(notice));
            await save(ctx, parcel);
        }
        return JSON.stringify(parcel);
    }

    /** Returns a parcel as it is now. */
    async parcel(ctx, id) {
        return JSON.stringify(await load(ctx, id));
    }

    /** Returns all readings of a parcel, oldest first. */
    async readings(ctx, id) {
        const found = [];
        const rows = ctx.stub.getStateByPartialCompositeKey(READING, [id]);
        for await (const row of rows) {
            found.push(decode(row.value));
        }
        return JSON.stringify(found);
    }

    /** Returns the ids of the parcels that an organisation holds. */
    async holdings(ctx, custodian) {
        const ids = [];
        const rows = ctx.stub.getStateByPartialCompositeKey(HOLDING, [custodian]);
        for await (const row of rows) {
            ids.push(ctx.stub.splitCompositeKey(row.key).attributes[1]);
        }
        return JSON.stringify(ids);
    }

    /** Returns every version of a parcel, newest first. */
    async history(ctx, id) {
        const changes = [];
        for await (const row of ctx.stub.getHistoryForKey(id)) {
            const millis = row.timestamp.seconds * 1000 + row.timestamp.nanos / 1e6;
            changes.push({
                tx: row.txId,
                at: new Date(millis).toISOString(),
                parcel: decode(row.value),
            });
        }
        return JSON.stringify(changes);
    }
}

async function load(ctx, id) {
    const value = await ctx.stub.getState(id);
    if (value.length === 0) {
        throw new Error(`there is no parcel ${id}`);
    }
    return decode(value);
}

/** Returns the parcel if the caller's organisation holds it. */
async function inHand(ctx, id) {
    const parcel = await load(ctx, id);
    const caller = ctx.clientIdentity.getMSPID();
    if (caller !== parcel.custodian) {
        throw new Error(`parcel ${id} is with ${parcel.custodian}, not with ${caller}`);
    }
    return parcel;
}

async function save(ctx, parcel) {
    await ctx.stub.putState(parcel.id, encode(parcel));
}

async function hold(ctx, parcel) {
    const key = ctx.stub.createCompositeKey(HOLDING, [parcel.custodian, parcel.id]);
    // The key says it all, but an empty value would delete it.
    await ctx.stub.putState(key, Buffer.from([1]));
}

// Keys keep the order in which a literal names them, and JSON.parse keeps it too, so
// every peer that endorses writes the same bytes.
const encode = (value) => Buffer.from(JSON.stringify(value));
const decode = (bytes) => JSON.parse(Buffer.from(bytes).toString('utf8'));

function celsiusOf(text) {
    const number = Number(text);
    if (text.trim() === '' || !Number.isFinite(number)) {
        throw new Error(`${text} is no temperature`);
    }
    return number;
}

module.exports = { ColdChain };
