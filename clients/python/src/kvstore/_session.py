"""Pipelined operations for threads: many in flight on one stream, each answered through its future."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from kvstore import _operations as operations
from kvstore._operations import (
    BatchOptions,
    Consistency,
    Entry,
    Operation,
    PutOptions,
    WriteOptions,
    encode,
    encode_all,
)
from kvstore.errors import KvError, Unavailable, from_rpc, from_status, from_transport
from kvstore.v1.kv_pb2 import SessionRequest, SessionResponse
from kvstore.v1.kv_pb2_grpc import KvServiceStub

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class Session:
    """A stream of operations; `with client.session() as session:`. Safe to share between threads.

    The methods are those of `Client` and give futures. At `window` operations in flight they wait for an answer (so a
    callback of a future must not call them). Operations on one key take effect in the order they were started. Nothing is
    retried: when the stream breaks, every operation without an answer fails, writes with `OutcomeUnknown`, and the session
    is over. Leaving the block waits for all answers and raises what broke the stream; a failed operation is only told by
    its future.
    """

    def __init__(self, stub: KvServiceStub, window: int, on_broken: Callable[[KvError], None]) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        self._window = window
        self._on_broken = on_broken
        self._outgoing: SimpleQueue[SessionRequest | None] = SimpleQueue()
        # Guards what follows, and the order of the queue.
        self._changed = threading.Condition()
        self._in_flight: dict[int, tuple[Operation[Any], Future[Any]]] = {}
        self._started = 0
        self._closed = False
        self._broken: KvError | None = None
        self._call = stub.Session(self._requests())
        self._reader = threading.Thread(target=self._read, name="kvstore-session", daemon=True)
        self._reader.start()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._half_close()
            self._call.cancel()
            self._reader.join()

    def close(self) -> None:
        """Waits for all answers and ends the stream; raises what broke it."""
        self._half_close()
        self._reader.join()
        if self._broken is not None:
            raise self._broken

    def put(self, key: str, value: object, **options: Unpack[PutOptions]) -> Future[int]:
        """As `Client.put`."""
        return self._start(operations.put(key, text=encode(value), **options))

    def put_text(self, key: str, text: str, **options: Unpack[PutOptions]) -> Future[int]:
        """As `Client.put_text`."""
        return self._start(operations.put(key, text=text, **options))

    def put_raw(self, key: str, raw: bytes, **options: Unpack[PutOptions]) -> Future[int]:
        """As `Client.put_raw`."""
        return self._start(operations.put(key, raw=raw, **options))

    def get(self, key: str, *, consistency: Consistency = "linearizable") -> Future[Entry | None]:
        """As `Client.get`."""
        return self._start(operations.get(key, consistency))

    def delete(self, key: str, **options: Unpack[WriteOptions]) -> Future[bool]:
        """As `Client.delete`."""
        return self._start(operations.delete(key, **options))

    def batch_put(self, values: Mapping[str, object], **options: Unpack[BatchOptions]) -> Future[int]:
        """As `Client.batch_put`."""
        return self._start(operations.batch_put(encode_all(values), **options))

    def batch_put_text(self, texts: Mapping[str, str], **options: Unpack[BatchOptions]) -> Future[int]:
        """As `Client.batch_put_text`."""
        return self._start(operations.batch_put(texts, **options))

    def batch_get(self, keys: Iterable[str], *, consistency: Consistency = "linearizable") -> Future[list[Entry]]:
        """As `Client.batch_get`."""
        return self._start(operations.batch_get(keys, consistency))

    def _start(self, operation: Operation[T]) -> Future[T]:
        future: Future[T] = Future()
        # Its answer comes in any case; a future that could be cancelled would only hide it.
        future.set_running_or_notify_cancel()
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._in_flight) < self._window or self._closed or self._broken is not None
            )
            if why := refusal(self._closed, self._broken):
                raise why
            self._started += 1
            self._in_flight[self._started] = (operation, future)
            self._outgoing.put(request(self._started, operation))
        return future

    def _half_close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._outgoing.put(None)

    def _requests(self) -> Iterator[SessionRequest]:
        # gRPC runs this in a thread of its own.
        while (message := self._outgoing.get()) is not None:
            yield message

    def _read(self) -> None:
        failure: grpc.RpcError | str = "the server has ended the session early"
        try:
            for answer in self._call:
                self._settle(answer)
        except grpc.RpcError as error:
            failure = error
        with self._changed:
            left = list(self._in_flight.values())
            self._in_flight.clear()
            if isinstance(failure, grpc.RpcError) or left or not self._closed:
                self._broken = broken(failure)
                self._on_broken(self._broken)
            self._changed.notify_all()
        self._outgoing.put(None)  # Ends gRPC's thread.
        for operation, future in left:
            future.set_exception(broken(failure, write=operation.write))

    def _settle(self, answer: SessionResponse) -> None:
        with self._changed:
            started = self._in_flight.pop(answer.id, None)
            self._changed.notify()
        if started is None:
            return  # Answered before.
        operation, future = started
        try:
            future.set_result(result(operation, answer))
        except KvError as error:
            future.set_exception(error)


def request(number: int, operation: Operation[Any]) -> SessionRequest:
    """An operation as a session sends it."""
    fields: dict[str, Any] = {operation.name: operation.request}
    return SessionRequest(id=number, **fields)


def result(operation: Operation[T], answer: SessionResponse) -> T:
    """What the answer to an operation comes to; raises when it is a failure."""
    if answer.WhichOneof("result") != "status":
        return operation.decode(getattr(answer, operation.name))
    error = from_status(answer.status, write=operation.write)
    if error.reason == "KEY_NOT_FOUND":
        return operation.decode(None)
    raise error


def broken(failure: grpc.RpcError | str, *, write: bool = False) -> KvError:
    """What an operation without an answer comes to when the stream has ended, by `failure`."""
    return from_transport(failure, write=write) if isinstance(failure, str) else from_rpc(failure, write=write)


def refusal(closed: bool, cause: KvError | None) -> Exception | None:
    """Why no operation can be started any more, if so."""
    if closed:
        return RuntimeError("the session is closed")
    if cause is not None:
        return Unavailable(f"the session is broken, nothing was sent: {cause.message}", "UNAVAILABLE")
    return None
