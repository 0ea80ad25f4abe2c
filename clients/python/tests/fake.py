"""A server that does what a test tells it, and both clients behind one face."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from kvstore import AsyncClient, Client
from kvstore.v1 import kv_pb2, kv_pb2_grpc

Act = Callable[[Any, grpc.ServicerContext], Any]


def status(code: str, reason: str = "", *, retry_after: float = 0.0, **metadata: str) -> status_pb2.Status:
    """A status as the server makes it; without `reason`, as the transport does."""
    made = status_pb2.Status(code=getattr(grpc.StatusCode, code).value[0], message=f"{code} {reason}")
    details: list[Any] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain="kvstore", metadata=metadata))
    if retry_after:
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(nanos=int(retry_after * 1e9))))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        made.details.append(packed)
    return made


def fail(context: grpc.ServicerContext, made: status_pb2.Status) -> NoReturn:
    """Ends the call with the status `made`."""
    trailing = tuple(context.trailing_metadata() or ())
    if made.details:
        context.set_trailing_metadata((*trailing, ("grpc-status-details-bin", made.SerializeToString())))
    code = next(code for code in grpc.StatusCode if code.value[0] == made.code)
    context.abort(code, made.message)
    raise AssertionError("abort raises")


def refuse(code: str, reason: str = "", **options: Any) -> Act:
    """Answers with an error."""
    return lambda request, context: fail(context, status(code, reason, **options))


def answer(message: Any) -> Act:
    """Answers with `message`."""
    return lambda request, context: message


class Fake(kv_pb2_grpc.KvServiceServicer):
    """One endpoint. Acts on its calls with `acts`, one after the other; the last for all that follow."""

    def __init__(self, *acts: Act) -> None:
        self.acts = list(acts)
        self.requests: list[Any] = []
        self.times_left: list[float | None] = []
        #: The epoch that came with each call.
        self.epochs: list[Any] = []
        #: What its health says.
        self.serving = True
        #: Whether the epoch is told with errors.
        self.refuses = False
        #: Tells the ring: not, as an older server. How often it was asked. The epoch of this node.
        self.ring: Act = refuse("UNIMPLEMENTED")
        self.rings = 0
        self.epoch: Callable[[], int] | None = None
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        kv_pb2_grpc.add_KvServiceServicer_to_server(self, self._server)
        health: Any = grpc.unary_unary_rpc_method_handler(
            lambda request, context: b"\x08" + bytes([1 if self.serving else 2])
        )
        handlers = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health})
        self._server.add_generic_rpc_handlers((handlers,))
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def act(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._lock:
            self.requests.append(request)
            self.times_left.append(context.time_remaining())
            act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
            known = dict(context.invocation_metadata()).get("kvstore-epoch")
            self.epochs.append(known)
        if self.epoch is not None and known not in (None, str(self.epoch())):
            # With an error both come at once, as the end.
            told = (("kvstore-epoch", str(self.epoch())),)
            context.set_trailing_metadata(told) if self.refuses else context.send_initial_metadata(told)
        return act(request, context)

    # The names are those of the generated service.
    def Put(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self.act(request, context)

    Get = Delete = BatchPut = BatchGet = Range = Stats = Put

    def GetRing(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._lock:
            self.rings += 1
        return self.ring(request, context)

    def Scan(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield from self.act(request, context)

    def Session(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield from self.act(request_iterator, context)


class Blocking:
    """`AsyncClient` with the face of `Client`, so that one test tells the story of both."""

    def __init__(self, endpoints: list[str], **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(endpoints, **options)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            result = getattr(self._client, name)(*arguments, **options)
            return self._items(result) if name in ("range", "scan") else self._loop.run_until_complete(result)

        return call

    def _items(self, items: Any) -> Iterator[Any]:
        try:
            while (item := self._loop.run_until_complete(anext(items, None))) is not None:
                yield item
        finally:
            self._loop.run_until_complete(items.aclose())

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


CLIENTS: dict[str, Callable[..., Any]] = {"Client": Client, "AsyncClient": Blocking}


def items(keys: Iterable[str]) -> list[kv_pb2.Item]:
    return [kv_pb2.Item(key=key, value="1", version=1) for key in keys]
