"""Keys that are not settings: Fabric's that have no effect here, and former ones of ours.

Source: docs/fabric/configuration.md
"""

from __future__ import annotations

NOT_USED = {
    "metrics.statsd": "metrics are read at /metrics, not sent",
    "chaincode.externalbuilders": "external builders are not supported yet",
    "chaincode.id.name": "Fabric does not read it either",
    "chaincode.id.path": "Fabric does not read it either",
    "chaincode.system": "system chaincodes are part of the node",
    "chaincode.golang.dynamiclink": "the build of Go chaincode decides how it is linked",
    "chaincode.java.runtime": "Java chaincode cannot be built yet",
    "chaincode.keepalive": "gRPC keeps the streams alive",
    "peer.address": "the node listens on local addresses only",
    "peer.filesystempath": "everything is in the home (--home)",
    "peer.maxsendmsgsize": "peer.maxRecvMsgSize applies to both directions",
    "vm.docker.hostconfig.networkmode": "chaincode gets a network of its own",
    "vm.docker.hostconfig.privileged": "chaincode is never privileged",
    "vm.docker.hostconfig.capadd": "chaincode has no capabilities",
    "vm.docker.hostconfig.capdrop": "all capabilities are dropped",
    "vm.docker.hostconfig.ipcmode": "chaincode shares no namespace with others",
    "vm.docker.hostconfig.pidmode": "chaincode shares no namespace with others",
    "vm.docker.hostconfig.utsmode": "chaincode shares no namespace with others",
    "vm.docker.hostconfig.usernsmode": "chaincode shares no namespace with others",
    "vm.docker.hostconfig.memoryswap": "chaincode has no swap: beyond Memory it is killed",
    "vm.docker.hostconfig.memoryswappiness": "chaincode has no swap",
    "vm.docker.hostconfig.oomkilldisable": "chaincode that exceeds Memory is killed",
    "vm.docker.hostconfig.blkioweight": "Fabric does not read it either",
    "vm.docker.hostconfig.nanocpus": "use chaindock.sandbox.cpus",
    "vm.docker.hostconfig.tmpfs": "use chaindock.sandbox.tmp",
    "vm.docker.hostconfig.binds": "no directory of this machine is mounted",
    "vm.docker.hostconfig.mounts": "no directory of this machine is mounted",
    "vm.docker.hostconfig.links": "chaincode reaches no other container",
    "vm.docker.hostconfig.portbindings": "no port of chaincode is published",
    "vm.docker.hostconfig.groupadd": "chaincode has only the group of its user",
    "vm.docker.hostconfig.restartpolicy": "the node restarts chaincode",
    "vm.docker.hostconfig.runtime": "the engine's default runtime is used",
    "vm.docker.hostconfig.logconfig.type": "the engine's own log is read",
}
"""Why Fabric's key, or all below it, has no effect; in lower case."""

REMOVED = {
    "chaindock.launch.stable": "",
    "chaindock.build.cpushares": "",
    "chaindock.build.pids": "",
    "chaindock.build.user": "",
    "chaindock.docker.pullsilence": "",
    "chaindock.docker.calltimeout": "",
    "chaindock.docker.connecttimeout": "",
    "chaindock.docker.namespace": "write the namespace into the name of the image",
    "chaindock.sandbox.pids": "use vm.docker.hostConfig.PidsLimit",
    "chaindock.sandbox.openfiles": "use vm.docker.hostConfig.Ulimits, such as nofile=4096",
    "chaindock.process.keepbuilds": "",
    "chaindock.process.maxopenfiles": "set openFiles in chaindock.chaincodes.NAME",
}
"""Keys that were settings once, in lower case, and what to use instead."""
