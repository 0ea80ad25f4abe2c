"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, cast

import grpc
import grpc.aio

from kvstore import _operations as operations
from kvstore._aio_session import AsyncSession
from kvstore._endpoints import OPTIONS
from kvstore._operations import (
    BatchOptions,
    Consistency,
    Entry,
    Operation,
    PutOptions,
    Query,
    Stats,
    Walk,
    encode,
    encode_all,
)
from kvstore._retry import Attempts, checked
from kvstore._routing import LoopRouter
from kvstore._watchdog import LoopWatchdog
from kvstore.errors import from_rpc, from_transport, metadata_of
from kvstore.v1.kv_pb2 import ScanRequest
from kvstore.v1.kv_pb2_grpc import KvServiceStub

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kvstore.v1.kv_pb2_grpc import KvServiceAsyncStub

T = TypeVar("T")


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited. For one event loop."""

    def __init__(
        self, endpoints: str | Sequence[str] | None = None, *, timeout: float = 5.0, route: bool = True
    ) -> None:
        """As `Client`."""
        self._timeout = checked(timeout)
        self._endpoints = LoopRouter(endpoints, _connect, _stub, route=route)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections. Calls under way fail."""
        for channel in self._endpoints.close():
            await channel.close()

    async def put(
        self,
        key: str,
        value: object,
        *,
        ttl: int | None = None,
        if_version: int | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Stores anything that JSON can express; gives the key's new version.

        The key expires after `ttl` seconds; without one it does not, also when it did before. With `if_version` it is
        written only if its version is this one (0: only if it is absent), and `VersionMismatch` raised otherwise.
        """
        return await self.put_text(
            key, encode(value), ttl=ttl, if_version=if_version, request_id=request_id, timeout=timeout
        )

    async def put_text(
        self, key: str, text: str, *, timeout: float | None = None, **options: Unpack[PutOptions]
    ) -> int:
        """Stores text that is JSON already, byte for byte; otherwise as `put`."""
        return await self._run(operations.put(key, text=text, **options), timeout)

    async def put_raw(
        self, key: str, raw: bytes, *, timeout: float | None = None, **options: Unpack[PutOptions]
    ) -> int:
        """Stores any bytes; otherwise as `put`."""
        return await self._run(operations.put(key, raw=raw, **options), timeout)

    async def get(
        self, key: str, *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> Entry | None:
        """Reads one key; `None` when it is missing."""
        return await self._run(operations.get(key, consistency), timeout)

    async def delete(
        self, key: str, *, if_version: int | None = None, request_id: str | None = None, timeout: float | None = None
    ) -> bool:
        """Removes one key, with `if_version` only if its version is this one; tells whether it was there."""
        return await self._run(operations.delete(key, if_version=if_version, request_id=request_id), timeout)

    async def batch_put(
        self,
        values: Mapping[str, object],
        *,
        ttl: int | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> int:
        """Stores many values; gives their number. Each shard's part is atomic, the batch over all shards is not."""
        return await self.batch_put_text(encode_all(values), ttl=ttl, request_id=request_id, timeout=timeout)

    async def batch_put_text(
        self, texts: Mapping[str, str], *, timeout: float | None = None, **options: Unpack[BatchOptions]
    ) -> int:
        """Stores many texts that are JSON already; otherwise as `batch_put`."""
        return await self._run(operations.batch_put(texts, **options), timeout)

    async def batch_get(
        self, keys: Iterable[str], *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> list[Entry]:
        """Reads many keys, in the order asked. Missing keys are left out."""
        return await self._run(operations.batch_get(keys, consistency), timeout)

    async def range(
        self,
        *,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
        page_size: int | None = None,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> AsyncGenerator[Entry, None]:
        """Walks the keys of `[start, end)` that begin with `prefix`, in order, and fetches pages as it goes.

        `timeout` is for each page.
        """
        walk = Walk(prefix, start, end, limit, reverse, keys_only, consistency, page_size)
        while not walk.finished:
            for entry in await self._run(walk.page(), timeout):
                yield entry

    async def scan(self, *, timeout: float | None = None, **query: Unpack[Query]) -> AsyncGenerator[Entry, None]:
        """As `range`, over one stream. Leaving the loop closes it; a broken one is taken up where it broke.

        `timeout` is for the whole walk. Without one, the client's is for each wait for an entry.
        """
        walk = Walk(**query)
        wait = self._timeout if timeout is None else timeout
        attempts = Attempts(wait, renewed=timeout is None)
        while True:
            number, stub = self._endpoints.current()
            operation = walk.stream()
            whole = None if timeout is None else attempts.time_left()
            call = stub.Scan(cast(ScanRequest, operation.request), timeout=whole)
            with LoopWatchdog(wait, call.cancel, first=attempts.time_left()) as watchdog:
                try:
                    async for answer in call:
                        watchdog.resting()
                        entry = operation.decode(answer)
                        if entry is not None:
                            yield entry
                            attempts.step()
                        if walk.finished:
                            return
                        watchdog.waiting(attempts.time_left())
                    return
                except grpc.RpcError as failure:
                    error = from_rpc(failure, write=False)
                except asyncio.CancelledError:
                    if not (watchdog.barked or self._endpoints.closed):
                        raise
                    error = (
                        watchdog.error() if watchdog.barked else from_transport("the client was closed", write=False)
                    )
                finally:
                    call.cancel()
            self._endpoints.failed(number, error)
            if self._endpoints.closed:
                raise error
            await asyncio.sleep(attempts.wait_after(error))

    async def stats(self, *, timeout: float | None = None) -> Stats:
        """Counts of the node that answers."""
        return await self._run(operations.stats(), timeout)

    def session(self, *, window: int = 512) -> AsyncSession:
        """Opens a stream for pipelined operations, at most `window` of them in flight."""
        number, stub = self._endpoints.current()
        return AsyncSession(stub, window, lambda error: self._endpoints.failed(number, error))

    async def _run(self, operation: Operation[T], timeout: float | None) -> T:
        attempts = Attempts(self._timeout if timeout is None else timeout)
        key = operation.key
        while True:
            asked, stub = self._endpoints.target(key)
            key = None  # When its leader fails, any node will do.
            try:
                sent = {"timeout": attempts.time_left(), "metadata": self._endpoints.metadata()}
                call = getattr(stub, operation.method)(operation.request, **sent)
                answer = await call
                self._endpoints.heard(await call.initial_metadata())
                return operation.decode(answer)
            except grpc.RpcError as failure:
                self._endpoints.heard(*metadata_of(failure))
                error = from_rpc(failure, write=operation.write)
            except asyncio.CancelledError:
                # Closing the client looks to its calls as if their tasks were cancelled.
                if not self._endpoints.closed:
                    raise
                error = from_transport("the client was closed", write=operation.write)
            if error.reason == "KEY_NOT_FOUND":
                return operation.decode(None)
            self._endpoints.failed(asked, error)
            if self._endpoints.closed:
                raise error
            await asyncio.sleep(attempts.wait_after(error))


def _connect(address: str, secure: bool) -> grpc.aio.Channel:
    if secure:
        return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), OPTIONS)
    return grpc.aio.insecure_channel(address, OPTIONS)


def _stub(channel: grpc.aio.Channel) -> KvServiceAsyncStub:
    # One class at run time; the types know two.
    return cast("KvServiceAsyncStub", KvServiceStub(channel))
