'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const { checkpointers, connect, hash, signers } = require('@hyperledger/fabric-gateway');

const env = process.env;

async function main(parcel) {
    const client = new grpc.Client(
        env.PEER_ENDPOINT,
        grpc.credentials.createSsl(fs.readFileSync(env.TLS_CERT_PATH)),
        { 'grpc.ssl_target_name_override': env.PEER_HOST_ALIAS },
    );
    const key = crypto.createPrivateKey(firstFile(env.KEY_DIRECTORY_PATH));
    const gateway = connect({
        client,
        identity: { mspId: env.MSP_ID, credentials: firstFile(env.CERT_DIRECTORY_PATH) },
        signer: signers.newPrivateKeySigner(key),
        hash: hash.sha256,
    });
    const network = gateway.getNetwork(env.CHANNEL_NAME || 'mychannel');
    const contract = network.getContract(env.CHAINCODE_NAME || 'coldchain');

    try {
        await contract.submitTransaction('register', parcel, '2', '8');
        console.log('registered', parcel);
        console.log('parcel', text(await contract.evaluateTransaction('parcel', parcel)));

        // The listener goes on after the last event that it has seen, also that of an earlier run.
        const checkpoint = await checkpointers.file(env.CHECKPOINT || 'events.checkpoint');
        const events = await network.getChaincodeEvents(contract.getChaincodeName(), { checkpoint });
        const record = contract.submitTransaction('record', parcel, '12.5');
        // Both at once: a stream of events that nobody reads ends the program if it fails.
        await Promise.all([listen(events, checkpoint, parcel), record]).finally(() => events.close());
    } finally {
        gateway.close();
        client.close();
    }
}

async function listen(events, checkpoint, parcel) {
    for await (const event of events) {
        const notice = JSON.parse(text(event.payload));
        console.log(event.eventName, notice.id, notice.celsius);
        await checkpoint.checkpointChaincodeEvent(event);
        if (notice.id === parcel) {
            break;
        }
    }
}

function firstFile(folder) {
    return fs.readFileSync(path.join(folder, fs.readdirSync(folder)[0]));
}

function text(bytes) {
    return Buffer.from(bytes).toString();
}

if (process.argv.length !== 3 || !env.PEER_ENDPOINT) {
    console.error('usage: node app.js PARCEL, after eval "$(chaindock env app coldchain)"');
    process.exit(2);
}
main(process.argv[2]).catch((error) => {
    const details = (error.details || []).map((one) => one.message);
    console.error(error.message, ...details.filter((one) => !error.message.includes(one)));
    process.exitCode = 1;
});
