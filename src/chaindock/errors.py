"""Every error that Chaindock raises on purpose (the tree: docs/reference/errors.md)."""

from __future__ import annotations

import errno
import re
from enum import StrEnum
from typing import Any, ClassVar


class Code(StrEnum):
    """What kind of failure it is; follows the gRPC codes."""

    INVALID_ARGUMENT = "invalid-argument"
    NOT_FOUND = "not-found"
    ALREADY_EXISTS = "already-exists"
    FAILED_PRECONDITION = "failed-precondition"
    PERMISSION_DENIED = "permission-denied"
    RESOURCE_EXHAUSTED = "resource-exhausted"
    ABORTED = "aborted"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    UNIMPLEMENTED = "unimplemented"
    DATA_LOSS = "data-loss"
    INTERNAL = "internal"


class ChaindockError(Exception):
    """Root of the tree.

    Args:
        message: what, to which object, expected and found. hint: the next thing to do.
        facts: typed details for machines; each becomes an attribute.
    """

    code: ClassVar[Code] = Code.INTERNAL
    slug: ClassVar[str] = "internal"
    """The word for it in JSON: the words of the class's name, joined by hyphens."""
    retryable: bool = False
    """The same act may succeed later as it is. A fact of this name overrides the class."""

    def __init_subclass__(cls) -> None:
        cls.slug = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __init__(self, message: str, *, hint: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.message, self.hint, self.facts = message, hint, facts
        self.retryable = bool(facts.get("retryable", type(self).retryable))

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["facts"][name]
        except KeyError:
            raise AttributeError(name) from None

    def as_dict(self) -> dict[str, Any]:
        """JSON shape used by the admin API and `--json` output."""
        import json  # here, because `--help` does without it  # noqa: PLC0415

        return {
            "error": self.slug,
            "code": str(self.code),
            "message": self.message,
            "hint": self.hint,
            "facts": json.loads(json.dumps(self.facts, default=str)),
        }


def is_retryable(error: OSError) -> bool:
    """Whether the system refused for want of something: space, memory, processes."""
    space = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}
    return error.errno in space | {errno.EAGAIN, errno.EMFILE, errno.ENFILE}


class InvalidInput(ChaindockError):
    """An input breaks its rule. Nothing was changed."""

    code = Code.INVALID_ARGUMENT


class PackageInvalid(InvalidInput):
    """A chaincode package breaks a rule. Facts: `entry`, `rule`."""


class SourceInvalid(InvalidInput):
    """A source directory cannot be packaged or built. Facts: `path`."""


class ConfigInvalid(InvalidInput):
    """A setting is unknown or has a wrong value. Facts: `key`, `origin`."""


class ProposalInvalid(InvalidInput):
    """A signed proposal fails a check that a peer makes before it simulates."""


class NotFound(ChaindockError):
    """The named object does not exist."""

    code = Code.NOT_FOUND


class ImageNotFound(NotFound):
    """The engine has no such image. Facts: `image`; `tried` ([{image, error, why}])."""


class ImagePlatformMissing(ImageNotFound):
    """The image exists, but not for the engine's kind of processor. Facts: `image`."""


class AlreadyExists(ChaindockError):
    """The named object exists already."""

    code = Code.ALREADY_EXISTS


class ContainerExists(AlreadyExists):
    """The container name is taken. Facts: `container`."""


class PlacementConflict(ChaindockError):
    """The package runs elsewhere than asked. Facts: `ccid`, `asked`, `given`."""

    code = Code.FAILED_PRECONDITION


class TransactionExists(AlreadyExists):
    """The transaction id is running, or on the ledger. Facts: `tx_id`."""


class Denied(ChaindockError):
    """The identity may not do this."""

    code = Code.PERMISSION_DENIED


class Unsupported(ChaindockError):
    """Known to Fabric, not yet to Chaindock."""

    code = Code.UNIMPLEMENTED


class BudgetExceeded(ChaindockError):
    """The node would hold too much memory for a contract. Facts: `limit`, `found`."""

    code = Code.RESOURCE_EXHAUSTED


class TooManyRequests(ChaindockError):
    """More requests at once than the limit allows. Facts: `limit`."""

    code = Code.RESOURCE_EXHAUSTED
    retryable = True


class ToolMissing(ChaindockError):
    """A program that is needed is not on the PATH. Facts: `tool`."""

    code = Code.FAILED_PRECONDITION


class StorageError(ChaindockError):
    """A file of the node cannot be written or read. Facts: `path`."""

    code = Code.FAILED_PRECONDITION


class EngineError(ChaindockError):
    """The container engine refused. Facts: `status` (HTTP), `endpoint`."""


class EngineUnavailable(EngineError):
    """No engine answers at the endpoint. Facts: `endpoint`, `verdict`, `tried`."""

    code = Code.UNAVAILABLE
    retryable = True


class EngineTimeout(EngineError):
    """The engine did not answer in time. Facts: `endpoint`, `limit_s`."""

    code = Code.DEADLINE_EXCEEDED
    retryable = True


class RegistryUnavailable(EngineError):
    """The engine did not reach the registry of an image. Facts: `image`."""

    code = Code.UNAVAILABLE
    retryable = True


class RegistryDenied(EngineError):
    """The registry requires a login, or refuses this one. Facts: `image`."""

    code = Code.PERMISSION_DENIED


class RateLimited(EngineError):
    """The registry gives no more images for now. Facts: `image`, `retry_after_s`."""

    code = Code.RESOURCE_EXHAUSTED
    retryable = True


class LaunchFailed(ChaindockError):
    """A chaincode did not come up.

    Facts, as far as known: `ccid`, `stage` (build or start), `phase`, `phases` ([{phase,
    seconds}]), `output` (last lines), `retryable` (it may come up by itself later),
    `registered` (false); and of its end `cause`, `exit_code`, `signal`, `oom`.
    """

    code = Code.UNAVAILABLE


class BuildFailed(LaunchFailed):
    """A build step ended with an error."""

    code = Code.FAILED_PRECONDITION


class BuildSilent(BuildFailed):
    """A build step printed nothing for too long. Facts: `step`, `limit_s`."""

    code = Code.DEADLINE_EXCEEDED


class StartFailed(LaunchFailed):
    """The container or process could not be started."""


class ChaincodeRetired(LaunchFailed):
    """The chaincode was stopped, removed or replaced, so it is not started."""

    retryable = True


class NetworkMissing(StartFailed):
    """The engine has no network of the name that was set. Facts: `network`."""

    code = Code.FAILED_PRECONDITION


class NameUnresolved(StartFailed):
    """No name of the node's machine resolves in containers. Facts: `hosts`, `port`."""


class NodeUnreachable(StartFailed):
    """The node's listener does not answer containers. Facts: `hosts`, `port`."""


class ExitedEarly(LaunchFailed):
    """The chaincode ended before it registered."""


class LaunchTimeout(LaunchFailed):
    """A phase took longer than it may. Facts: `limit_s`."""

    code = Code.DEADLINE_EXCEEDED


class RegisterTimeout(LaunchTimeout):
    """The chaincode connected and did not register in time. Facts: `limit_s`."""


class TlsFailed(LaunchFailed):
    """The chaincode connected; no TLS handshake succeeded. Facts: `handshakes`."""

    code = Code.PERMISSION_DENIED


class RegistrationRefused(LaunchFailed):
    """The node refused the registration of the chaincode."""

    code = Code.PERMISSION_DENIED


class ExecuteFailed(ChaindockError):
    """An invocation ended without a response of the chaincode. Facts: `tx_id`."""

    code = Code.ABORTED


class ExecuteTimeout(ExecuteFailed):
    """The chaincode did not answer the call in time. Facts: `limit_s`."""

    code = Code.DEADLINE_EXCEEDED


class StreamTerminated(ExecuteFailed):
    """The chaincode's stream ended while the transaction ran.

    Facts, as far as known: `reason`, `sent`, `registered`, `output` (last lines); and of
    its end `cause`, `exit_code`, `signal`, `oom`.
    """


class ChaincodeError(ExecuteFailed):
    """The chaincode answered ERROR, or something that cannot be decoded."""


class LedgerError(ChaindockError):
    """The ledger refused an operation, or failed."""


class LedgerCorrupt(LedgerError):
    """The ledger file is damaged or inconsistent."""

    code = Code.DATA_LOSS


class LedgerClosed(LedgerError):
    """The ledger or simulator was closed."""

    code = Code.UNAVAILABLE


class ReadOnlyViolation(LedgerError):
    """Queries and writes that exclude each other in one transaction."""

    code = Code.FAILED_PRECONDITION


class NodeError(ChaindockError):
    """The node cannot start, cannot be reached, or is stopping."""

    code = Code.FAILED_PRECONDITION


class NodeNotRunning(NodeError):
    """No node serves this home. Facts: `home`."""

    code = Code.UNAVAILABLE


class NodeAlreadyRunning(NodeError):
    """Another process serves this home. Facts: `home`, `pid`."""

    code = Code.ALREADY_EXISTS


class NodeStopping(NodeError):
    """The node is stopping and takes no more requests."""

    code = Code.UNAVAILABLE
