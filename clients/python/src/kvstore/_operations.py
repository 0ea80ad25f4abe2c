"""Every operation as a value: its request, and what its answer comes to. Clients and sessions only carry them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar

from google.protobuf.message import Message

from kvstore.v1 import kv_pb2

T = TypeVar("T")

#: How fresh a read must be. "linearizable": it sees every write acknowledged before it began. "stale": the copy at hand is
#: enough. "lease": the leader's lease is, where the operator has switched leases on.
Consistency = Literal["linearizable", "stale", "lease"]

_CONSISTENCY = {
    "linearizable": kv_pb2.CONSISTENCY_LINEARIZABLE,
    "stale": kv_pb2.CONSISTENCY_STALE,
    "lease": kv_pb2.CONSISTENCY_LEASE,
}

#: Items of a page when the request does not say, unless the operator of the server does.
PAGE_SIZE_USUAL = 1_000


class WriteOptions(TypedDict, total=False):
    """What every write of one key takes."""

    if_version: int | None
    request_id: str | None


class PutOptions(WriteOptions, total=False):
    """What a put takes."""

    ttl: int | None


class BatchOptions(TypedDict, total=False):
    """What a batch of puts takes."""

    ttl: int | None
    request_id: str | None


class Query(TypedDict, total=False):
    """What a range asks for."""

    prefix: str | None
    start: str | None
    end: str | None
    limit: int | None
    reverse: bool
    keys_only: bool
    consistency: Consistency


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it is stored. `text` and `raw` are both `None` when only keys were asked for."""

    #: The key.
    key: str
    #: The version of the write that stored it.
    version: int
    #: Seconds left until it expires; `None` when it does not.
    ttl: int | None = None
    #: The JSON text, byte for byte as it was stored; `None` when the value is raw.
    text: str | None = None
    #: The bytes; `None` when the value is JSON.
    raw: bytes | None = None

    def json(self) -> Any:
        """The value, decoded from its JSON text."""
        if self.text is None:
            kind = "holds raw bytes; read them in `raw`" if self.raw is not None else "was read without its value"
            raise ValueError(f"the entry of key {self.key!r} {kind}")
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class ShardStats:
    """Counts of one shard on the node that answered."""

    shard: int
    keys: int
    bytes: int
    version: int
    writes: int
    reads: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of the node that answered. Approximate while writes go on."""

    node: str
    uptime_seconds: float
    keys: int
    bytes: int
    disk_bytes: int
    memory_bytes: int
    operations: Mapping[str, int]
    shards: tuple[ShardStats, ...]


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call: `name` is the field of a session's request, and in CamelCase the method of the service."""

    name: str
    request: Message
    #: Makes the result of an answer, and of `None` when the key is missing.
    decode: Callable[[Any], T]
    write: bool = False
    #: The key whose shard's leader can answer it best. None: any node answers it as well.
    key: str | None = None

    @property
    def method(self) -> str:
        """The method of the generated stub."""
        return self.name.title().replace("_", "")


def encode(value: object) -> str:
    """`value` as JSON text."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode_all(values: Mapping[str, object]) -> dict[str, str]:
    """All `values` as JSON text."""
    return {key: encode(value) for key, value in values.items()}


def put(
    key: str,
    *,
    text: str | None = None,
    raw: bytes | None = None,
    ttl: int | None = None,
    if_version: int | None = None,
    request_id: str | None = None,
) -> Operation[int]:
    """Stores one value; gives its version."""
    request = kv_pb2.PutRequest(key=key, ttl=ttl, if_version=if_version, request_id=_request_id(request_id))
    if text is not None:
        request.value = text
    if raw is not None:
        request.raw = raw
    return Operation("put", request, lambda answer: int(answer.version), write=True, key=key)


def get(key: str, consistency: Consistency) -> Operation[Entry | None]:
    """Reads one key."""
    request = kv_pb2.GetRequest(key=key, consistency=_consistency(consistency))
    # The copy at hand is any node's.
    routed = None if consistency == "stale" else key
    return Operation("get", request, lambda answer: None if answer is None else entry(answer), key=routed)


def delete(key: str, *, if_version: int | None = None, request_id: str | None = None) -> Operation[bool]:
    """Removes one key; tells whether it was there."""
    request = kv_pb2.DeleteRequest(key=key, if_version=if_version, request_id=_request_id(request_id))
    return Operation("delete", request, lambda answer: bool(answer.deleted), write=True, key=key)


def batch_put(texts: Mapping[str, str], *, ttl: int | None = None, request_id: str | None = None) -> Operation[int]:
    """Stores many JSON texts; gives their number."""
    request = kv_pb2.BatchPutRequest(entries=texts, ttl=ttl, request_id=_request_id(request_id))
    return Operation("batch_put", request, lambda answer: int(answer.count), write=True)


def batch_get(keys: Iterable[str], consistency: Consistency) -> Operation[list[Entry]]:
    """Reads many keys."""
    request = kv_pb2.BatchGetRequest(keys=keys, consistency=_consistency(consistency))
    return Operation("batch_get", request, lambda answer: [entry(item) for item in answer.items])


def stats() -> Operation[Stats]:
    """Counts what is stored."""
    return Operation("stats", kv_pb2.StatsRequest(), _stats)


class Walk:
    """A walk over a range, page by page or as a stream: what to ask for next, given what has come."""

    def __init__(
        self,
        prefix: str | None = None,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        reverse: bool = False,
        keys_only: bool = False,
        consistency: Consistency = "linearizable",
        page_size: int | None = None,
    ) -> None:
        self._query: dict[str, Any] = {
            "start_key": start,
            "end_key": end,
            "prefix": prefix,
            "reverse": reverse,
            "keys_only": keys_only,
            "consistency": _consistency(consistency),
        }
        self._left = limit
        self._page_size = page_size
        self._last: str | None = None
        self._token = ""
        #: Whether nothing follows what was read last.
        self.finished = False

    def page(self) -> Operation[list[Entry]]:
        """Reads the next page."""
        size = self._page_size
        if self._left is not None and self._left < (PAGE_SIZE_USUAL if size is None else size):
            size = self._left
        request = kv_pb2.RangeRequest(**self._query, limit=size, page_token=self._token)
        return Operation("range", request, self._paged)

    def _paged(self, answer: kv_pb2.RangeResponse) -> list[Entry]:
        self._token = answer.next_page_token
        items = answer.items[: self._left]
        if self._left is not None:
            self._left -= len(items)
        self.finished = not self._token or self._left == 0
        return [entry(item) for item in items]

    def stream(self) -> Operation[Entry | None]:
        """Streams what is left; an answer that has come before comes to `None`.

        A broken stream is taken up at the last key. Going upwards that key comes once more, as a bound behind it could be
        longer than a key may be.
        """
        query, limit = dict(self._query), self._left
        if self._last is not None:
            query["end_key" if query["reverse"] else "start_key"] = self._last
            limit = limit if limit is None or query["reverse"] else limit + 1
        return Operation("scan", kv_pb2.ScanRequest(**query, limit=limit), self._streamed)

    def _streamed(self, answer: kv_pb2.ScanResponse) -> Entry | None:
        if answer.key == self._last:
            return None
        self._last = answer.key
        if self._left is not None:
            self._left -= 1
            self.finished = self._left == 0
        return entry(answer)


def entry(item: Any) -> Entry:
    """An answer with a key in it, as an entry."""
    content = item.WhichOneof("content")
    return Entry(
        key=item.key,
        version=item.version,
        ttl=item.ttl if item.HasField("ttl") else None,
        text=item.value if content == "value" else None,
        raw=item.raw if content == "raw" else None,
    )


def _stats(answer: kv_pb2.StatsResponse) -> Stats:
    # Counts travel as doubles, because that is what REST can carry.
    return Stats(
        node=answer.node,
        uptime_seconds=answer.uptime_seconds,
        keys=int(answer.keys),
        bytes=int(answer.bytes),
        disk_bytes=int(answer.disk_bytes),
        memory_bytes=int(answer.memory_bytes),
        operations={name: int(count) for name, count in answer.operations.items()},
        shards=tuple(
            ShardStats(s.shard, int(s.keys), int(s.bytes), int(s.version), int(s.writes), int(s.reads))
            for s in answer.shards
        ),
    )


def _consistency(name: Consistency) -> kv_pb2.Consistency.ValueType:
    if name not in _CONSISTENCY:
        raise ValueError(f"consistency {name!r} does not exist; use one of {', '.join(_CONSISTENCY)}")
    return _CONSISTENCY[name]


def _request_id(given: str | None) -> str:
    return secrets.token_hex(16) if given is None else given
