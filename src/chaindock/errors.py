"""Every error that Chaindock raises on purpose (the tree: docs/reference/errors.md)."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
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

    def __init_subclass__(
        cls, code: Code | None = None, *, retryable: bool | None = None
    ) -> None:
        cls.code = code or cls.code
        cls.retryable = cls.retryable if retryable is None else retryable
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


def is_retryable(error: Exception) -> bool:
    """Whether the system refused for want of something: space, memory, processes."""
    space = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}
    wants = space | {errno.EAGAIN, errno.EMFILE, errno.ENFILE}
    return isinstance(error, OSError) and error.errno in wants


@contextmanager
def os_errors_as(
    kind: type[ChaindockError], what: str, act: str = "read", **facts: Any
) -> Iterator[None]:
    """Raise `kind` for an OSError in the block: `what` cannot be `act`, and why."""
    try:
        yield
    except OSError as error:
        text = f"{what} cannot be {act}: {error.strerror}"
        raise kind(text, **facts) from error


class InvalidInput(ChaindockError, code=Code.INVALID_ARGUMENT):
    """An input breaks its rule. Nothing was changed."""


class PackageInvalid(InvalidInput):
    """A chaincode package breaks a rule. Facts: `entry`, `rule`."""


class SourceInvalid(InvalidInput):
    """A source directory cannot be packaged or built. Facts: `path`."""


class ConfigInvalid(InvalidInput):
    """A setting is unknown or has a wrong value. Facts: `key`, `origin`."""


class ProposalInvalid(InvalidInput):
    """A signed proposal fails a check that a peer makes before it simulates."""


class NotFound(ChaindockError, code=Code.NOT_FOUND):
    """The named object does not exist."""


class ImageNotFound(NotFound):
    """The engine has no such image. Facts: `image`; `tried` ([{image, error, why}])."""


class ImagePlatformMissing(ImageNotFound):
    """The image exists, but not for the engine's kind of processor. Facts: `image`."""


class AlreadyExists(ChaindockError, code=Code.ALREADY_EXISTS):
    """The named object exists already."""


class ContainerExists(AlreadyExists):
    """The container name is taken. Facts: `container`."""


class PlacementConflict(ChaindockError, code=Code.FAILED_PRECONDITION):
    """The package runs elsewhere than asked. Facts: `ccid`, `asked`, `given`."""


class TransactionExists(AlreadyExists):
    """The transaction id is running, or on the ledger. Facts: `tx_id`."""


class Denied(ChaindockError, code=Code.PERMISSION_DENIED):
    """The identity may not do this."""


class EndorsersMissing(ChaindockError, code=Code.FAILED_PRECONDITION):
    """No organisations of the node satisfy all endorsement policies of a transaction.

    Facts: `protected`: collections for whose sake some may not endorse.
    """


class NotEndorsed(ChaindockError, code=Code.ABORTED):
    """Peers that had to endorse a transaction refused, or had other results.

    Facts: `organizations`: what each of these peers said, by MSP id; `late`: one timed out.
    """


class Unsupported(ChaindockError, code=Code.UNIMPLEMENTED):
    """Known to Fabric, not yet to Chaindock."""


class BudgetExceeded(ChaindockError, code=Code.RESOURCE_EXHAUSTED):
    """The node would hold too much memory for a contract. Facts: `limit`, `found`."""


class TooManyRequests(ChaindockError, code=Code.RESOURCE_EXHAUSTED, retryable=True):
    """More requests at once than the limit allows. Facts: `limit`."""


class ToolMissing(ChaindockError, code=Code.FAILED_PRECONDITION):
    """A program that is needed is not on the PATH. Facts: `tool`."""


class StorageError(ChaindockError, code=Code.FAILED_PRECONDITION):
    """A file of the node cannot be written or read. Facts: `path`."""


class EngineError(ChaindockError):
    """The container engine refused. Facts: `status` (HTTP), `endpoint`."""


class EngineUnavailable(EngineError, code=Code.UNAVAILABLE, retryable=True):
    """No engine answers at the endpoint. Facts: `endpoint`, `verdict`, `tried`."""


class EngineTimeout(EngineError, code=Code.DEADLINE_EXCEEDED, retryable=True):
    """The engine did not answer in time. Facts: `endpoint`, `limit_s`."""


class RegistryUnavailable(EngineError, code=Code.UNAVAILABLE, retryable=True):
    """The engine did not reach the registry of an image. Facts: `image`."""


class RegistryDenied(EngineError, code=Code.PERMISSION_DENIED):
    """The registry requires a login, or refuses this one. Facts: `image`."""


class RateLimited(EngineError, code=Code.RESOURCE_EXHAUSTED, retryable=True):
    """The registry gives no more images for now. Facts: `image`, `retry_after_s`."""


class LaunchFailed(ChaindockError, code=Code.UNAVAILABLE):
    """A chaincode did not come up.

    Facts, as far as known: `ccid`, `stage` (build or start), `phase`, `phases` ([{phase,
    seconds}]), `output` (last lines), `retryable` (it may come up by itself later),
    `registered` (false); and of its end `cause`, `exit_code`, `signal`, `oom`.
    """


class BuildFailed(LaunchFailed, code=Code.FAILED_PRECONDITION):
    """A build step ended with an error."""


class BuildSilent(BuildFailed, code=Code.DEADLINE_EXCEEDED):
    """A build step printed nothing for too long. Facts: `step`, `limit_s`."""


class StartFailed(LaunchFailed):
    """The container or process could not be started."""


class ChaincodeRetired(LaunchFailed, retryable=True):
    """The chaincode was stopped, removed or replaced, so it is not started."""


class NetworkMissing(StartFailed, code=Code.FAILED_PRECONDITION):
    """The engine has no network of the name that was set. Facts: `network`."""


class NameUnresolved(StartFailed):
    """No name of the node's machine resolves in containers. Facts: `hosts`, `port`."""


class NodeUnreachable(StartFailed):
    """The node's listener does not answer containers. Facts: `hosts`, `port`."""


class ExitedEarly(LaunchFailed):
    """The chaincode ended before it registered."""


class LaunchTimeout(LaunchFailed, code=Code.DEADLINE_EXCEEDED):
    """A phase took longer than it may. Facts: `limit_s`."""


class RegisterTimeout(LaunchTimeout):
    """The chaincode connected and did not register in time. Facts: `limit_s`."""


class TlsFailed(LaunchFailed, code=Code.PERMISSION_DENIED):
    """The chaincode connected; no TLS handshake succeeded. Facts: `handshakes`."""


class RegistrationRefused(LaunchFailed, code=Code.PERMISSION_DENIED):
    """The node refused the registration of the chaincode."""


class ExecuteFailed(ChaindockError, code=Code.ABORTED):
    """An invocation ended without a response of the chaincode. Facts: `tx_id`."""


class ExecuteTimeout(ExecuteFailed, code=Code.DEADLINE_EXCEEDED):
    """The chaincode did not answer the call in time. Facts: `limit_s`."""


class StreamTerminated(ExecuteFailed):
    """The chaincode's stream ended while the transaction ran.

    Facts, as far as known: `reason`, `sent`, `registered`, `output` (last lines); and of
    its end `cause`, `exit_code`, `signal`, `oom`.
    """


class NotDeterministic(ExecuteFailed):
    """Runs of one proposal gave different results: endorsers would disagree."""


class ChaincodeError(ExecuteFailed):
    """The chaincode answered ERROR, or something that cannot be decoded."""


class LedgerError(ChaindockError):
    """The ledger refused an operation, or failed."""


class TransactionInvalid(LedgerError, code=Code.ABORTED):
    """The block marks the transaction as not valid, or none has it: nothing was written."""


class LedgerCorrupt(LedgerError, code=Code.DATA_LOSS):
    """The ledger file is damaged or inconsistent."""


class LedgerClosed(LedgerError, code=Code.UNAVAILABLE):
    """The ledger or simulator was closed."""


class ReadOnlyViolation(LedgerError, code=Code.FAILED_PRECONDITION):
    """Queries and writes that exclude each other in one transaction."""


class NodeError(ChaindockError, code=Code.FAILED_PRECONDITION):
    """The node cannot start, cannot be reached, or is stopping."""


class NodeNotRunning(NodeError, code=Code.UNAVAILABLE):
    """No node serves this home. Facts: `home`."""


class NodeAlreadyRunning(NodeError, code=Code.ALREADY_EXISTS):
    """Another process serves this home. Facts: `home`, `pid`."""


class NodeStopping(NodeError, code=Code.UNAVAILABLE):
    """The node is stopping and takes no more requests."""
