'use strict';

// What the server does on the ledger: one connection per user, and one listener.

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const { checkpointers, connect, hash, signers } = require('@hyperledger/fabric-gateway');

const AGAIN_MS = 500;
const CALL_MS = 30_000;

const text = (bytes) => Buffer.from(bytes).toString();
const firstFile = (folder) => fs.readFileSync(path.join(folder, fs.readdirSync(folder)[0]));

/** A user of an organisation, with what `chaindock env app` prints for the user. */
class User {
    constructor(env) {
        this.mspId = env.MSP_ID;
        this.client = new grpc.Client(
            env.PEER_ENDPOINT,
            grpc.credentials.createSsl(fs.readFileSync(env.TLS_CERT_PATH)),
            { 'grpc.ssl_target_name_override': env.PEER_HOST_ALIAS },
        );
        const deadline = () => ({ deadline: Date.now() + CALL_MS });
        this.gateway = connect({
            client: this.client,
            identity: { mspId: env.MSP_ID, credentials: firstFile(env.CERT_DIRECTORY_PATH) },
            signer: signers.newPrivateKeySigner(
                crypto.createPrivateKey(firstFile(env.KEY_DIRECTORY_PATH))),
            hash: hash.sha256,
            evaluateOptions: deadline,
            endorseOptions: deadline,
            submitOptions: deadline,
            commitStatusOptions: deadline,
        });
        this.network = this.gateway.getNetwork(env.CHANNEL_NAME);
        this.contract = this.network.getContract(env.CHAINCODE_NAME);
    }

    /** Puts a deal on the ledger; only its hash tells others of the price. */
    async offer(id, price) {
        await this.contract.submit('offer', { arguments: [id], transientData: { price } });
    }

    /** Returns a deal; its price is null for those who may not read it. */
    async deal(id) {
        const deal = JSON.parse(text(await this.contract.evaluateTransaction('deal', id)));
        const price = await this.contract.evaluateTransaction('price', id).then(text, () => null);
        return { ...deal, price };
    }

    close() {
        this.gateway.close();
        this.client.close();
    }
}

/**
 * Follows the events of the contract, over restarts of the peer and of this program.
 *
 * An event is written to a file and then marked in the checkpoint. If the program ends in
 * between, the event comes again, and is known by its transaction.
 */
class Notices {
    constructor(user, folder) {
        this.user = user;
        this.checkpointFile = path.join(folder, 'checkpoint.json');
        this.file = path.join(folder, 'notices.jsonl');
        const lines = fs.existsSync(this.file) ? fs.readFileSync(this.file, 'utf8').split('\n') : [];
        const complete = lines.slice(0, -1);
        fs.writeFileSync(this.file, complete.map((line) => `${line}\n`).join(''));
        this.all = complete.map((line) => JSON.parse(line));
        this.known = new Set(this.all.map((one) => one.transaction));
    }

    async follow() {
        const checkpoint = await checkpointers.file(this.checkpointFile);
        while (!this.closed) {
            try {
                const { contract, network } = this.user;
                const from = { checkpoint, startBlock: 0n }; // at first, all there are
                this.events = await network.getChaincodeEvents(contract.getChaincodeName(), from);
                for await (const event of this.events) {
                    this.take(event);
                    await checkpoint.checkpointChaincodeEvent(event);
                }
            } catch (error) {
                console.error('events:', error.message);
            }
            await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
        }
    }

    take(event) {
        if (this.known.has(event.transactionId)) {
            return;
        }
        const notice = {
            transaction: event.transactionId,
            name: event.eventName,
            ...JSON.parse(text(event.payload)),
        };
        fs.appendFileSync(this.file, `${JSON.stringify(notice)}\n`);
        this.known.add(event.transactionId);
        this.all.push(notice);
    }

    close() {
        this.closed = true;
        this.events?.close();
    }
}

module.exports = { Notices, User };
