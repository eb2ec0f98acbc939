import com.google.gson.Gson;
import io.grpc.Grpc;
import io.grpc.ManagedChannel;
import io.grpc.TlsChannelCredentials;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Stream;
import org.hyperledger.fabric.client.ChaincodeEvent;
import org.hyperledger.fabric.client.CloseableIterator;
import org.hyperledger.fabric.client.Contract;
import org.hyperledger.fabric.client.FileCheckpointer;
import org.hyperledger.fabric.client.Gateway;
import org.hyperledger.fabric.client.GatewayException;
import org.hyperledger.fabric.client.Network;
import org.hyperledger.fabric.client.identity.Identities;
import org.hyperledger.fabric.client.identity.Signers;
import org.hyperledger.fabric.client.identity.X509Identity;

/** Registers a parcel and waits for its breach. */
public final class Parcels {
    private static final class Notice {
        private String id;
        private double celsius;
    }

    private Parcels() {
    }

    public static void main(final String[] args) throws Exception {
        if (args.length != 1 || System.getenv("PEER_ENDPOINT") == null) {
            System.err.println("expected one argument, PARCEL, after eval \"$(chaindock env app coldchain)\"");
            System.exit(2);
        }
        final ManagedChannel channel = Grpc.newChannelBuilder(
                System.getenv("PEER_ENDPOINT"),
                TlsChannelCredentials.newBuilder().trustManager(path("TLS_CERT_PATH").toFile()).build())
                .overrideAuthority(System.getenv("PEER_HOST_ALIAS"))
                .build();
        final String certificate = firstFile(path("CERT_DIRECTORY_PATH"));
        final String key = firstFile(path("KEY_DIRECTORY_PATH"));
        try (Gateway gateway = Gateway.newInstance()
                .identity(new X509Identity(
                        System.getenv("MSP_ID"), Identities.readX509Certificate(certificate)))
                .signer(Signers.newPrivateKeySigner(Identities.readPrivateKey(key)))
                .connection(channel)
                .connect()) {
            run(gateway.getNetwork(env("CHANNEL_NAME", "mychannel")), args[0]);
        } catch (GatewayException error) {
            System.err.println(error.getMessage() + " " + error.getDetails());
            System.exit(1);
        } finally {
            channel.shutdownNow();
        }
    }

    private static void run(final Network network, final String parcel) throws Exception {
        final Contract contract = network.getContract(env("CHAINCODE_NAME", "coldchain"));
        // The listener goes on after the last event that it has seen, also that of an earlier run.
        try (FileCheckpointer checkpoint =
                        new FileCheckpointer(Path.of(env("CHECKPOINT", "events.checkpoint")));
                CloseableIterator<ChaincodeEvent> events =
                        network.newChaincodeEventsRequest(contract.getChaincodeName())
                                .checkpoint(checkpoint)
                                .build()
                                .getEvents()) {
            contract.submitTransaction("register", parcel, "2", "8");
            System.out.println("registered " + parcel);
            System.out.println("parcel " + text(contract.evaluateTransaction("parcel", parcel)));
            contract.submitTransaction("record", parcel, "12.5");
            while (events.hasNext()) {
                final ChaincodeEvent event = events.next();
                final Notice notice = new Gson().fromJson(text(event.getPayload()), Notice.class);
                System.out.println(event.getEventName() + " " + notice.id + " " + notice.celsius);
                checkpoint.checkpointChaincodeEvent(event);
                if (notice.id.equals(parcel)) {
                    return;
                }
            }
        }
    }

    private static String firstFile(final Path folder) throws IOException {
        try (Stream<Path> files = Files.list(folder)) {
            return Files.readString(files.findFirst().orElseThrow());
        }
    }

    private static Path path(final String name) {
        return Path.of(System.getenv(name));
    }

    private static String env(final String name, final String otherwise) {
        final String value = System.getenv(name);
        return value == null ? otherwise : value;
    }

    private static String text(final byte[] bytes) {
        return new String(bytes, StandardCharsets.UTF_8);
    }
}
