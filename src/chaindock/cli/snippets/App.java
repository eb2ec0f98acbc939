// Calls the contract $name through the node's gateway. Save it as src/main/java/App.java in a
// Maven project that depends on org.hyperledger.fabric:fabric-gateway,
// io.grpc:grpc-netty-shaded and com.google.protobuf:protobuf-java (4.31 or newer).
// Arguments: submit or evaluate, FUNCTION, ARG...
import io.grpc.Grpc;
import io.grpc.ManagedChannel;
import io.grpc.TlsChannelCredentials;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import org.hyperledger.fabric.client.Contract;
import org.hyperledger.fabric.client.Gateway;
import org.hyperledger.fabric.client.GatewayException;
import org.hyperledger.fabric.client.identity.Identities;
import org.hyperledger.fabric.client.identity.Signers;
import org.hyperledger.fabric.client.identity.X509Identity;

public final class App {
    public static void main(final String[] given) throws Exception {
        if (given.length < 2 || !given[0].matches("submit|evaluate")) {
            System.err.println("expected arguments: submit|evaluate FUNCTION ARG...");
            System.exit(2);
        }
        final ManagedChannel channel = Grpc.newChannelBuilder(
                        $address,
                        TlsChannelCredentials.newBuilder()
                                .trustManager(Path.of($ca).toFile())
                                //mutual .keyManager(Path.of($tls_certificate).toFile(), Path.of($tls_key).toFile())
                                .build())
                .overrideAuthority($tls_name)
                .build();
        final String certificate = Files.readString(Path.of($certificate));
        final String key = Files.readString(Path.of($key));
        try (Gateway gateway = Gateway.newInstance()
                .identity(new X509Identity($mspid, Identities.readX509Certificate(certificate)))
                .signer(Signers.newPrivateKeySigner(Identities.readPrivateKey(key)))
                .connection(channel)
                .connect()) {
            final Contract contract = gateway.getNetwork($channel).getContract($contract);
            final String[] args = Arrays.copyOfRange(given, 2, given.length);
            final byte[] result = given[0].equals("submit")
                    ? contract.submitTransaction(given[1], args)
                    : contract.evaluateTransaction(given[1], args);
            System.out.println(new String(result, StandardCharsets.UTF_8));
        } catch (GatewayException error) {
            System.err.println(error.getMessage() + " " + error.getDetails());
            System.exit(1);
        } finally {
            channel.shutdownNow();
        }
    }
}
