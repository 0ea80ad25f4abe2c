"""Pipelined operations for asyncio: many in flight on one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
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
from kvstore._session import broken, refusal, request, result
from kvstore.errors import KvError
from kvstore.v1.kv_pb2 import SessionRequest, SessionResponse

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kvstore.v1.kv_pb2_grpc import KvServiceAsyncStub

T = TypeVar("T")


class AsyncSession:
    """A stream of operations; `async with client.session() as session:`.

    The methods are those of `AsyncClient`. Started side by side (tasks, `asyncio.gather`), at most `window` of them are in
    flight, the others wait. Operations on one key take effect in the order they were started. Nothing is retried: when the
    stream breaks, every operation without an answer fails, writes with `OutcomeUnknown`, and the session is over. Leaving
    the block waits for all answers and raises what broke the stream.
    """

    def __init__(self, stub: KvServiceAsyncStub, window: int, on_broken: Callable[[KvError], None]) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1")
        self._on_broken = on_broken
        self._window = asyncio.Semaphore(window)
        self._outgoing: asyncio.Queue[SessionRequest | None] = asyncio.Queue()
        self._in_flight: dict[int, tuple[Operation[Any], asyncio.Future[Any]]] = {}
        self._started = 0
        self._closed = False
        self._broken: KvError | None = None
        self._call = stub.Session(self._requests())
        self._reader = asyncio.create_task(self._read(), name="kvstore-session")

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
        else:
            self._half_close()
            self._call.cancel()
            await self._reader

    async def close(self) -> None:
        """Waits for all answers and ends the stream; raises what broke it."""
        self._half_close()
        await self._reader
        if self._broken is not None:
            raise self._broken

    async def put(self, key: str, value: object, **options: Unpack[PutOptions]) -> int:
        """As `AsyncClient.put`."""
        return await self._run(operations.put(key, text=encode(value), **options))

    async def put_text(self, key: str, text: str, **options: Unpack[PutOptions]) -> int:
        """As `AsyncClient.put_text`."""
        return await self._run(operations.put(key, text=text, **options))

    async def put_raw(self, key: str, raw: bytes, **options: Unpack[PutOptions]) -> int:
        """As `AsyncClient.put_raw`."""
        return await self._run(operations.put(key, raw=raw, **options))

    async def get(self, key: str, *, consistency: Consistency = "linearizable") -> Entry | None:
        """As `AsyncClient.get`."""
        return await self._run(operations.get(key, consistency))

    async def delete(self, key: str, **options: Unpack[WriteOptions]) -> bool:
        """As `AsyncClient.delete`."""
        return await self._run(operations.delete(key, **options))

    async def batch_put(self, values: Mapping[str, object], **options: Unpack[BatchOptions]) -> int:
        """As `AsyncClient.batch_put`."""
        return await self._run(operations.batch_put(encode_all(values), **options))

    async def batch_put_text(self, texts: Mapping[str, str], **options: Unpack[BatchOptions]) -> int:
        """As `AsyncClient.batch_put_text`."""
        return await self._run(operations.batch_put(texts, **options))

    async def batch_get(self, keys: Iterable[str], *, consistency: Consistency = "linearizable") -> list[Entry]:
        """As `AsyncClient.batch_get`."""
        return await self._run(operations.batch_get(keys, consistency))

    async def _run(self, operation: Operation[T]) -> T:
        await self._window.acquire()  # Given back with the answer, whether or not somebody still waits for it.
        if why := refusal(self._closed, self._broken):
            self._window.release()
            raise why
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._started += 1
        self._in_flight[self._started] = (operation, future)
        self._outgoing.put_nowait(request(self._started, operation))
        return await future

    def _half_close(self) -> None:
        self._closed = True
        self._outgoing.put_nowait(None)

    async def _requests(self) -> AsyncIterator[SessionRequest]:
        while (message := await self._outgoing.get()) is not None:
            yield message

    async def _read(self) -> None:
        failure: grpc.RpcError | str = "the server has ended the session early"
        try:
            async for answer in self._call:
                self._settle(answer)
        except grpc.RpcError as error:
            failure = error
        except asyncio.CancelledError:
            failure = "the session was cancelled"
        left = list(self._in_flight.values())
        self._in_flight.clear()
        if isinstance(failure, grpc.RpcError) or left or not self._closed:
            self._broken = broken(failure)
            self._on_broken(self._broken)
        self._outgoing.put_nowait(None)
        for operation, future in left:
            self._window.release()
            if not future.done():
                future.set_exception(broken(failure, write=operation.write))

    def _settle(self, answer: SessionResponse) -> None:
        started = self._in_flight.pop(answer.id, None)
        if started is None:
            return  # Answered before.
        self._window.release()
        operation, future = started
        if future.done():
            return  # Nobody waits any more.
        try:
            future.set_result(result(operation, answer))
        except KvError as error:
            future.set_exception(error)
