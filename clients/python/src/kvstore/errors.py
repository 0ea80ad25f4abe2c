"""What a failed call raises: one class for each consequence, made from the status that gRPC carries.

A status without an ErrorInfo of domain "kvstore" was made by the transport (a reset connection, a proxy, the caller's own
deadline) and says nothing about a write: that is `OutcomeUnknown`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

_DOMAIN = "kvstore"
_DETAILS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

# What the transport makes by itself when it could not carry a call, whatever it calls it. Other bare codes (UNAUTHENTICATED
# of a proxy, UNIMPLEMENTED) are refusals.
_TRANSPORT = frozenset({"UNAVAILABLE", "CANCELLED", "UNKNOWN", "INTERNAL", "ABORTED"})
_MADE_BY_TRANSPORT = _TRANSPORT | {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}


class KvError(Exception):
    """A call that failed."""

    def __init__(
        self,
        message: str,
        code: str,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float = 0.0,
    ) -> None:
        # All of them, so that an error can be pickled.
        super().__init__(message, code, reason, metadata, retry_after)
        #: For people.
        self.message = message
        #: The name of the gRPC code, as "INVALID_ARGUMENT"; "UNAVAILABLE" for every failure of the transport but a deadline
        #: or a limit.
        self.code = code
        #: Which failure it is, stable, as "INVALID_JSON". Empty when the transport failed.
        self.reason = reason
        #: Facts for programs, as {"limit": "kvstore.limits.value-size", "max": "1048576"}.
        self.metadata = dict(metadata or {})
        #: Seconds after which the server wants to be asked again; 0 when it did not say.
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.reason or self.code}: {self.message}"


class InvalidArgument(KvError):
    """The request is wrong; repeating it cannot help."""


class VersionMismatch(KvError):
    """`if_version` did not hold, nothing was changed: read again, then decide."""


class Overloaded(KvError):
    """Certainly not applied: a limit of the server is reached. Slow down."""


class Unavailable(KvError):
    """Certainly not applied: nobody can serve it now."""


class OutcomeUnknown(KvError):
    """The write may or may not have been applied. Repeating it with the same `request_id` applies it once."""


class DeadlineExceeded(KvError):
    """A read did not end in time."""


class Corruption(KvError):
    """Data on the server is damaged."""


_BY_CODE: dict[str, type[KvError]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "ABORTED": VersionMismatch,
    "RESOURCE_EXHAUSTED": Overloaded,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "DATA_LOSS": Corruption,
}


def from_rpc(error: grpc.RpcError, *, write: bool) -> KvError:
    """The error of a call that gRPC has failed."""
    call = cast(Any, error)  # Whatever gRPC raises has the methods of a call as well, which its types do not say.
    status = status_pb2.Status()
    for name, value in call.trailing_metadata() or ():
        if name == _DETAILS_KEY:
            status.ParseFromString(value)
    return _build(call.code().name, call.details() or "", status.details, write=write)


def metadata_of(error: grpc.RpcError) -> tuple[Any, Any]:
    """What came with an error: before it, and with it."""
    call = cast(Any, error)
    return call.initial_metadata(), call.trailing_metadata()


def from_status(status: status_pb2.Status, *, write: bool) -> KvError:
    """The error of an operation that a session has answered with a status."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _build(code.name, status.message, status.details, write=write)


def from_transport(message: str, *, write: bool) -> KvError:
    """The error of a call that ended without any status."""
    return _build("UNAVAILABLE", message, (), write=write)


def _build(code: str, message: str, details: Iterable[Any], *, write: bool) -> KvError:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in details:
        detail.Unpack(info)
        detail.Unpack(retry)
    reason = info.reason if info.domain == _DOMAIN else ""
    unknown = reason == "OUTCOME_UNKNOWN" or (write and not reason and code in _MADE_BY_TRANSPORT)
    if not reason and code in _TRANSPORT:
        code = "UNAVAILABLE"
    kind = OutcomeUnknown if unknown else _BY_CODE.get(code, KvError)
    if kind is VersionMismatch and reason != "VERSION_MISMATCH":
        kind = KvError
    retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return kind(message, code, reason, dict(info.metadata) if reason else None, retry_after)
