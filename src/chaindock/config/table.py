"""Every setting there is.

Owns:    the list of keys: name, kind, target, help.
Not:     defaults (the options that the targets name), reading (sources.py).
Entry:   KEYS, KNOWN, REASONS
Holds:   each target exists in Config; each key has one line of help.
Source:  launch.md §7; docs/reference/config.md is made from here
Size:    one row per setting, nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaindock.config.engine_kinds import (
    ADDRESSES,
    CPU_SET,
    HOSTS,
    MEMORY,
    MIRRORS,
    SECURITY,
    ULIMITS,
    USER,
)
from chaindock.config.kinds import (
    ADDRESS,
    BOOLEAN,
    BYTES,
    COUNT,
    INTEGER,
    LOG_SPEC,
    NUMBER,
    PAIRS,
    PATH,
    PATHS,
    SIZE,
    TEXT,
    WORDS,
    Kind,
    checked,
    choice,
    duration,
    switched,
)
from chaindock.config.settings import Key
from chaindock.ids import require_channel

if TYPE_CHECKING:
    from collections.abc import Iterator

_TIME = duration()
_MODE = Kind(
    lambda value, base: choice("net", "dev").read(value, base) == "dev",
    lambda value: "dev" if value else "net",
)
_BATCH = Kind(lambda value, base: INTEGER.read(value, base) or 1000, INTEGER.show)
_PULL = switched("always", "missing", BOOLEAN)
_START = duration(least_s=5.0, above_zero=False)
_EXECUTE = duration(least_s=1.0, instead_s=30.0, above_zero=False)
_CHANNEL = checked(
    require_channel, "a lower-case letter, then lower-case letters, digits, . or -"
)

# name, kind, targets in Config (blank between), help
_Row = tuple[str, Kind, str, str]

_PEER: tuple[_Row, ...] = (
    (
        "peer.id",
        TEXT,
        "node.peer_id",
        "Part of container and image names; empty = peer0- and the node's id.",
    ),
    ("peer.networkId", TEXT, "node.network_id", "Part of container and image names."),
    ("peer.localMspId", TEXT, "node.msp_id", "MSP id of the organisation."),
    (
        "peer.chaincodeListenAddress",
        ADDRESS,
        "listen.bind",
        "host:port to listen on for chaincode; no host = its addresses that are needed.",
    ),
    (
        "peer.chaincodeAddress",
        ADDRESS,
        "listen.advertise",
        "host:port that chaincode is told to dial; empty = where the node listens.",
    ),
    (
        "peer.tls.enabled",
        BOOLEAN,
        "listen.tls",
        "Mutual TLS on streams with chaincode; off in development mode.",
    ),
    (
        "peer.maxRecvMsgSize",
        BYTES,
        "stream.max_message_bytes",
        "Largest message between node and chaincode.",
    ),
    (
        "ledger.state.totalQueryLimit",
        COUNT,
        "stream.total_query_limit ledger.total_query_limit",
        "Most rows that one query returns.",
    ),
)

_PULL_ONE = choice("default", "missing", "never", "always")
_CHAINCODE: tuple[_Row, ...] = (
    (
        "chaincode.mode",
        _MODE,
        "stream.admit_unlaunched",
        "dev: take chaincode that nobody launched.",
    ),
    (
        "chaincode.builder",
        TEXT,
        "docker.images.golang.builder",
        "Image that Go chaincode is compiled in.",
    ),
    (
        "chaincode.golang.runtime",
        TEXT,
        "docker.images.golang.runtime",
        "Image that Go chaincode runs in.",
    ),
    (
        "chaincode.node.runtime",
        TEXT,
        "docker.images.node.builder",
        "Image that Node chaincode is built and runs in.",
    ),
    ("chaincode.pull", _PULL, "docker.pull", "Fetch base images anew each time."),
    (
        "chaincode.installTimeout",
        _TIME,
        "launch.build_timeout_s",
        "Limit for a build, but for the time that it fetches something.",
    ),
    (
        "chaincode.startuptimeout",
        _START,
        "launch.startup_timeout_s",
        "Limit from creating the container or process to READY; at least 5s.",
    ),
    (
        "chaincode.executetimeout",
        _EXECUTE,
        "calls.execute_timeout_s",
        "Limit for the answer to a call; less than 1s means 30s.",
    ),
    (
        "chaincode.logging.level",
        TEXT,
        "node.logging_level",
        "Log level of the chaincode, told to its shim.",
    ),
    (
        "chaincode.logging.shim",
        TEXT,
        "node.logging_shim",
        "Log level of the shim.",
    ),
    (
        "chaincode.logging.format",
        TEXT,
        "node.logging_format",
        "Log format of the chaincode, told to its shim.",
    ),
    (
        "chaincode.runtimeParams.useWriteBatch",
        BOOLEAN,
        "stream.use_write_batch",
        "Let shims send many writes in one message.",
    ),
    (
        "chaincode.runtimeParams.maxSizeWriteBatch",
        _BATCH,
        "stream.max_size_write_batch",
        "Writes in one such message; 0 means 1000.",
    ),
    (
        "chaincode.runtimeParams.useGetMultipleKeys",
        BOOLEAN,
        "stream.use_get_multiple_keys",
        "Let shims read many keys with one message.",
    ),
    (
        "chaincode.runtimeParams.maxSizeGetMultipleKeys",
        _BATCH,
        "stream.max_size_get_multiple_keys",
        "Keys in one such message; 0 means 1000.",
    ),
)

_VM: tuple[_Row, ...] = (
    (
        "vm.docker.attachStdout",
        BOOLEAN,
        "output.echo",
        "Log what chaincode writes at level info, not debug; of processes too.",
    ),
    (
        "vm.endpoint",
        TEXT,
        "docker.endpoint.endpoint",
        "The container engine; unset = look for one, empty = use none.",
    ),
    (
        "vm.docker.tls.enabled",
        BOOLEAN,
        "docker.endpoint.tls",
        "Speak TLS with the engine.",
    ),
    (
        "vm.docker.tls.ca.file",
        PATH,
        "docker.endpoint.ca_file",
        "CA certificates of the engine, PEM.",
    ),
    (
        "vm.docker.tls.cert.file",
        PATH,
        "docker.endpoint.cert_file",
        "Our certificate for the engine, PEM.",
    ),
    (
        "vm.docker.tls.key.file",
        PATH,
        "docker.endpoint.key_file",
        "Its key, PEM.",
    ),
    (
        "vm.docker.hostConfig.Memory",
        MEMORY,
        "docker.sandbox.memory_bytes process.memory_bytes",
        "Memory of a running chaincode, without swap; 0 = unlimited.",
    ),
    (
        "vm.docker.hostConfig.CpuShares",
        INTEGER,
        "docker.sandbox.cpu_shares",
        "Its part of processors that are short; 0 = the engine's default, 1024.",
    ),
    (
        "vm.docker.hostConfig.CpuQuota",
        INTEGER,
        "docker.sandbox.cpu_quota",
        "Microseconds per CpuPeriod, in place of chaindock.sandbox.cpus; 0 = unset.",
    ),
    (
        "vm.docker.hostConfig.CpuPeriod",
        INTEGER,
        "docker.sandbox.cpu_period",
        "Microseconds; 0 = 100000.",
    ),
    (
        "vm.docker.hostConfig.CpusetCPUs",
        CPU_SET,
        "docker.sandbox.cpuset_cpus",
        "Processors that it may use, such as 0-2,4; empty = all.",
    ),
    (
        "vm.docker.hostConfig.CpusetMEMs",
        CPU_SET,
        "docker.sandbox.cpuset_mems",
        "Memory nodes that it may use; empty = all.",
    ),
    (
        "vm.docker.hostConfig.PidsLimit",
        INTEGER,
        "docker.sandbox.pids",
        "As chaindock.sandbox.pids.",
    ),
    (
        "vm.docker.hostConfig.Ulimits",
        ULIMITS,
        "docker.sandbox.ulimits",
        "More limits per process, such as nofile=1024:2048; ours of the name give way.",
    ),
    (
        "vm.docker.hostConfig.CgroupParent",
        TEXT,
        "docker.sandbox.cgroup_parent docker.compile.cgroup_parent",
        "The control group that containers are put below.",
    ),
    (
        "vm.docker.hostConfig.SecurityOpt",
        SECURITY,
        "docker.sandbox.security_opt",
        "More of them: profiles of AppArmor, seccomp or SELinux.",
    ),
    (
        "vm.docker.hostConfig.ReadonlyRootfs",
        BOOLEAN,
        "docker.sandbox.read_only",
        "Chaincode cannot write to its root file system.",
    ),
    (
        "vm.docker.hostConfig.Dns",
        ADDRESSES,
        "docker.sandbox.dns docker.compile.dns",
        "Name servers of containers, by IP address.",
    ),
    (
        "vm.docker.hostConfig.DnsSearch",
        WORDS,
        "docker.sandbox.dns_search",
        "Search domains of containers.",
    ),
    (
        "vm.docker.hostConfig.ExtraHosts",
        HOSTS,
        "docker.sandbox.extra_hosts docker.compile.extra_hosts",
        "More lines of /etc/hosts, as host:IP.",
    ),
    (
        "vm.docker.hostConfig.LogConfig.Config.max-size",
        BYTES,
        "docker.sandbox.log_max_bytes",
        "Output that the engine keeps, per file.",
    ),
    (
        "vm.docker.hostConfig.LogConfig.Config.max-file",
        COUNT,
        "docker.sandbox.log_files",
        "How many such files.",
    ),
)

_OPERATIONS: tuple[_Row, ...] = (
    (
        "operations.listenAddress",
        ADDRESS,
        "operations.address",
        "Where health and metrics are served; loopback without TLS; empty = nowhere.",
    ),
    (
        "operations.tls.enabled",
        BOOLEAN,
        "operations.tls",
        "Serve them with TLS; metrics and logspec then need a client certificate.",
    ),
    (
        "operations.tls.cert.file",
        PATH,
        "operations.cert_file",
        "Certificate of the endpoint, PEM.",
    ),
    ("operations.tls.key.file", PATH, "operations.key_file", "Its key, PEM."),
    (
        "operations.tls.clientAuthRequired",
        BOOLEAN,
        "operations.client_auth_required",
        "Refuse clients without a certificate, whatever they ask.",
    ),
    (
        "operations.tls.clientRootCAs.files",
        PATHS,
        "operations.client_roots",
        "Who signs the certificates of clients, PEM.",
    ),
    (
        "metrics.provider",
        choice("prometheus", "disabled"),
        "operations.metrics",
        "Whether there is /metrics.",
    ),
)

_OURS: tuple[_Row, ...] = (
    (
        "chaindock.backend",
        TEXT,
        "node.backend",
        "What runs chaincode: auto, docker or process.",
    ),
    ("chaindock.channel", _CHANNEL, "node.channel", "Name of the channel."),
    ("chaindock.domain", TEXT, "node.domain", "Domain of the organisation."),
    (
        "chaindock.ca",
        PATH,
        "build.ca_bundle",
        "Extra CA certificates for builds, PEM.",
    ),
    (
        "chaindock.log.level",
        choice("debug", "info", "warning", "error"),
        "log.level",
        "Least level of the node's log.",
    ),
    (
        "chaindock.log.spec",
        LOG_SPEC,
        "log.spec",
        "Levels by component, as FABRIC_LOGGING_SPEC: info:chaincode,endorser=debug.",
    ),
    ("chaindock.log.format", choice("text", "json"), "log.format", "Its form."),
    ("chaindock.output.keep", COUNT, "output.keep", "Attempts kept per chaincode."),
    ("chaindock.output.size", BYTES, "output.max_bytes", "Output kept per attempt."),
    (
        "chaindock.launch.connectTimeout",
        duration(above_zero=False),
        "launch.connect_timeout_s",
        "Limit from its start to its first word; 0 = what startuptimeout leaves.",
    ),
    (
        "chaindock.launch.registerTimeout",
        _TIME,
        "launch.register_timeout_s",
        "Limit from REGISTER to READY.",
    ),
    (
        "chaindock.launch.stopGrace",
        duration(above_zero=False),
        "launch.stop_grace_s custodian.stop_grace_s",
        "Between SIGTERM and SIGKILL.",
    ),
    (
        "chaindock.launch.drain",
        duration(above_zero=False),
        "custodian.drain_s",
        "How long calls under way may finish before a stop.",
    ),
    (
        "chaindock.launch.overrun",
        _TIME,
        "stream.overrun_s",
        "How long after its timeout a call must be answered, or chaincode restarts.",
    ),
    (
        "chaindock.launch.wait",
        _TIME,
        "calls.launch_wait_s",
        "How long a call waits for a launch.",
    ),
    (
        "chaindock.launch.parallel",
        INTEGER,
        "custodian.parallel",
        "Launches that begin at once; each 80 ms as many more may, up to eight times as many; 0 = one per processor.",
    ),
    (
        "chaindock.launch.retries",
        INTEGER,
        "custodian.retries",
        "How often a failed launch is tried again by itself.",
    ),
    (
        "chaindock.launch.retryFirst",
        _TIME,
        "custodian.retry_first_s",
        "Pause before the first of them; it doubles each time.",
    ),
    (
        "chaindock.launch.retryCap",
        _TIME,
        "custodian.retry_cap_s",
        "Longest such pause; also how often a call may try what is left alone.",
    ),
    (
        "chaindock.launch.stable",
        _TIME,
        "custodian.stable_s",
        "A chaincode that ran for so long begins anew with its retries.",
    ),
    (
        "chaindock.block.maxMessageCount",
        COUNT,
        "orderer.max_message_count",
        "Transactions of a block.",
    ),
    (
        "chaindock.block.absoluteMaxBytes",
        BYTES,
        "orderer.absolute_max_bytes",
        "Largest transaction.",
    ),
    (
        "chaindock.block.preferredMaxBytes",
        BYTES,
        "orderer.preferred_max_bytes",
        "A block is cut before it grows beyond this.",
    ),
    (
        "chaindock.block.batchTimeout",
        duration(above_zero=False),
        "orderer.batch_timeout_s",
        "How long a block waits for more; 0s = not at all.",
    ),
    (
        "chaindock.package.size",
        BYTES,
        "packages.package_bytes admin.max_package_bytes",
        "Largest package file.",
    ),
    (
        "chaindock.package.unpacked",
        BYTES,
        "packages.unpacked_bytes",
        "Largest package, unpacked.",
    ),
    ("chaindock.package.files", COUNT, "packages.files", "Most files in a package."),
)

_BUILD: tuple[_Row, ...] = (
    (
        "chaindock.build.variables",
        PAIRS,
        "build.variables",
        "More variables for builds, besides proxies and registries.",
    ),
    ("chaindock.build.user", USER, "docker.compile.user", "uid:gid of builds."),
    (
        "chaindock.build.network",
        TEXT,
        "docker.compile.network",
        "The engine's network for builds; empty = its default bridge.",
    ),
    (
        "chaindock.build.memory",
        SIZE,
        "docker.compile.memory_bytes",
        "Memory of a build container; 0 = unlimited.",
    ),
    (
        "chaindock.build.cpus",
        NUMBER,
        "docker.compile.cpus",
        "Processors of a build container; 0 = unlimited.",
    ),
    (
        "chaindock.build.cpuShares",
        INTEGER,
        "docker.compile.cpu_shares",
        "Its part of processors that are short; chaincode has 1024.",
    ),
    (
        "chaindock.build.pids",
        INTEGER,
        "docker.compile.pids",
        "Processes in a build container; 0 = unlimited.",
    ),
    (
        "chaindock.build.silence",
        _TIME,
        "docker.compile.silence_s process.silence_s",
        "A step that prints nothing for so long has failed.",
    ),
    (
        "chaindock.build.size",
        BYTES,
        "docker.compile.artifact_bytes",
        "What a build may leave behind.",
    ),
    (
        "chaindock.python.builder",
        TEXT,
        "docker.images.python.builder",
        "Image that Python chaincode is built in.",
    ),
    (
        "chaindock.python.runtime",
        TEXT,
        "docker.images.python.runtime",
        "Image that it runs in; empty = the same.",
    ),
    (
        "chaindock.node.runtime",
        TEXT,
        "docker.images.node.runtime",
        "Image that Node chaincode runs in; empty = chaincode.node.runtime.",
    ),
    (
        "chaindock.golang.pull",
        _PULL_ONE,
        "docker.images.golang.pull",
        "When the images of Go are fetched; default = chaindock.docker.pull.",
    ),
    (
        "chaindock.node.pull",
        _PULL_ONE,
        "docker.images.node.pull",
        "When the images of Node are fetched; default = chaindock.docker.pull.",
    ),
    (
        "chaindock.python.pull",
        _PULL_ONE,
        "docker.images.python.pull",
        "When the images of Python are fetched; default = chaindock.docker.pull.",
    ),
)

_BACKENDS: tuple[_Row, ...] = (
    (
        "chaindock.docker.pull",
        choice("missing", "never", "always"),
        "docker.pull",
        "When base images are fetched.",
    ),
    (
        "chaindock.docker.mirrors",
        MIRRORS,
        "docker.mirrors",
        "Where images are asked for if their registry fails, as OF=host/path, in order.",
    ),
    (
        "chaindock.docker.pullSilence",
        _TIME,
        "docker.pull_silence_s",
        "A pull without progress for so long has failed.",
    ),
    (
        "chaindock.docker.callTimeout",
        _TIME,
        "docker.call_s",
        "Limit for one call to the engine.",
    ),
    (
        "chaindock.docker.connectTimeout",
        _TIME,
        "docker.endpoint.connect_s",
        "Limit for an engine's first answer.",
    ),
    (
        "chaindock.docker.namespace",
        TEXT,
        "docker.docker_ns",
        "What $(DOCKER_NS) stands for in image names.",
    ),
    (
        "chaindock.docker.fabricVersion",
        TEXT,
        "docker.fabric_version",
        "What $(PROJECT_VERSION) stands for in image names.",
    ),
    (
        "chaindock.sandbox.user",
        USER,
        "docker.sandbox.user",
        "uid:gid of chaincode; empty = as its image says.",
    ),
    (
        "chaindock.sandbox.cpus",
        NUMBER,
        "docker.sandbox.cpus",
        "Processors of a chaincode; 0 = unlimited.",
    ),
    (
        "chaindock.sandbox.pids",
        INTEGER,
        "docker.sandbox.pids",
        "Processes of a chaincode; 0 = unlimited.",
    ),
    ("chaindock.sandbox.tmp", BYTES, "docker.sandbox.tmp_bytes", "Size of its /tmp."),
    (
        "chaindock.sandbox.openFiles",
        COUNT,
        "docker.sandbox.open_files",
        "Open files of one process.",
    ),
    (
        "chaindock.sandbox.fileSize",
        SIZE,
        "docker.sandbox.file_bytes",
        "Largest file; 0 = the size of /tmp.",
    ),
    (
        "chaindock.sandbox.internal",
        BOOLEAN,
        "docker.sandbox.internal",
        "Chaincode reaches the node and nothing else.",
    ),
    (
        "chaindock.process.path",
        TEXT,
        "process.path",
        "Where process builds look for toolchains (a PATH).",
    ),
    (
        "chaindock.process.cache",
        PATH,
        "process.cache_root",
        "Finished builds and caches of the toolchains; nodes may share it.",
    ),
    (
        "chaindock.process.keepBuilds",
        COUNT,
        "process.keep_builds",
        "Finished builds kept per label.",
    ),
    (
        "chaindock.process.maxOpenFiles",
        COUNT,
        "process.max_open_files",
        "Open files of one process of a chaincode.",
    ),
    (
        "chaindock.process.maxFileSize",
        BYTES,
        "process.max_file_bytes",
        "Largest file that it may write.",
    ),
    (
        "chaindock.process.tmp",
        BYTES,
        "process.tmp_bytes",
        "What it may keep in its private directory.",
    ),
)


def _keys() -> Iterator[Key]:
    for part in (_PEER, _CHAINCODE, _VM, _OPERATIONS, _OURS, _BUILD, _BACKENDS):
        for name, kind, targets, text in part:
            yield Key(name, kind, tuple(targets.split()), text)


KEYS = tuple(_keys())
KNOWN = {key.name.lower(): key for key in KEYS}
VARIABLES = {key.variable: key for key in KEYS}
MORE_VARIABLES = {"FABRIC_LOGGING_SPEC": KNOWN["chaindock.log.spec"]}
"""Variables of Fabric that are not made from a key."""
OUR_SECTION = "chaindock"

REASONS = {
    "metrics.statsd": "metrics are read at /metrics, not sent",
    "chaincode.externalbuilders": "external builders are not run yet",
    "chaincode.id.name": "Fabric does not read it either",
    "chaincode.id.path": "Fabric does not read it either",
    "chaincode.system": "system chaincodes are part of the node",
    "chaincode.golang.dynamiclink": "Go chaincode is linked as its build asks",
    "chaincode.java.runtime": "Java is not built yet",
    "chaincode.keepalive": "the streams have keepalive of their own",
    "peer.address": "the node listens on local addresses only",
    "peer.chaincodeaddress": "chaincode is told the address that reaches the node",
    "peer.filesystempath": "everything is in the home (--home)",
    "peer.maxsendmsgsize": "peer.maxRecvMsgSize holds for both ways",
    "vm.docker.hostconfig.networkmode": "chaincode gets a network of its own",
    "vm.docker.hostconfig.privileged": "chaincode is never privileged",
    "vm.docker.hostconfig.capadd": "chaincode has no capabilities",
    "vm.docker.hostconfig.capdrop": "all capabilities are dropped",
    "vm.docker.hostconfig.ipcmode": "chaincode shares nothing with others",
    "vm.docker.hostconfig.pidmode": "chaincode shares nothing with others",
    "vm.docker.hostconfig.utsmode": "chaincode shares nothing with others",
    "vm.docker.hostconfig.usernsmode": "chaincode shares nothing with others",
    "vm.docker.hostconfig.memoryswap": "no swap beyond Memory: too much is an OOM",
    "vm.docker.hostconfig.memoryswappiness": "no swap beyond Memory",
    "vm.docker.hostconfig.oomkilldisable": "what needs too much memory is ended",
    "vm.docker.hostconfig.blkioweight": "Fabric does not read it either",
    "vm.docker.hostconfig.nanocpus": "use chaindock.sandbox.cpus",
    "vm.docker.hostconfig.tmpfs": "use chaindock.sandbox.tmp",
    "vm.docker.hostconfig.binds": "nothing of this machine is put into a container",
    "vm.docker.hostconfig.mounts": "nothing of this machine is put into a container",
    "vm.docker.hostconfig.links": "chaincode reaches no other container",
    "vm.docker.hostconfig.portbindings": "chaincode is not published",
    "vm.docker.hostconfig.groupadd": "chaincode has the one group of its user",
    "vm.docker.hostconfig.restartpolicy": "the node restarts chaincode",
    "vm.docker.hostconfig.runtime": "the engine's default run-time is used",
    "vm.docker.hostconfig.logconfig.type": "output is read from the engine's own log",
}
"""Why some keys of Fabric are not used; the others mean nothing to chaincode."""
