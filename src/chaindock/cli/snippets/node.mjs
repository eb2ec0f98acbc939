// Calls the contract $name through the node's gateway. Save it as app.mjs, then:
//   npm install @hyperledger/fabric-gateway @grpc/grpc-js
//   node app.mjs submit FUNCTION ARG...        or: node app.mjs evaluate FUNCTION ARG...
import { createPrivateKey } from 'node:crypto';
import { readFileSync } from 'node:fs';
import * as grpc from '@grpc/grpc-js';
import { connect, signers } from '@hyperledger/fabric-gateway';

const [verb, name, ...args] = process.argv.slice(2);
if (!['submit', 'evaluate'].includes(verb) || !name) {
    console.error('usage: node app.mjs submit|evaluate FUNCTION ARG...');
    process.exit(2);
}
const client = new grpc.Client(
    $address,
    grpc.credentials.createSsl(
        readFileSync($ca),
        //mutual readFileSync($tls_key),
        //mutual readFileSync($tls_certificate),
    ),
    { 'grpc.ssl_target_name_override': $tls_name },
);
const gateway = connect({
    client,
    identity: { mspId: $mspid, credentials: readFileSync($certificate) },
    signer: signers.newPrivateKeySigner(createPrivateKey(readFileSync($key))),
});
try {
    const contract = gateway.getNetwork($channel).getContract($contract);
    const result = verb === 'submit'
        ? await contract.submitTransaction(name, ...args)
        : await contract.evaluateTransaction(name, ...args);
    console.log(Buffer.from(result).toString());
} catch (error) {
    const details = (error.details ?? []).map((one) => one.message);
    console.error(error.message, ...details.filter((one) => !error.message.includes(one)));
    process.exitCode = 1;
} finally {
    gateway.close();
    client.close();
}
