"""Client for kvstore, a distributed, persistent key/value store for JSON documents.

>>> from kvstore import Client
>>> with Client(["http://127.0.0.1:9090"]) as kv:
...     kv.put("user/1", {"name": "Ada"}, ttl=60)
...     kv.get("user/1").json()

`AsyncClient` has the same methods for asyncio. The generated code is in `kvstore.v1` and `kvstore.admin.v1`.
"""

from kvstore._aio_client import AsyncClient
from kvstore._aio_session import AsyncSession
from kvstore._client import Client
from kvstore._operations import Consistency, Entry, ShardStats, Stats
from kvstore._session import Session
from kvstore.errors import (
    Corruption,
    DeadlineExceeded,
    InvalidArgument,
    KvError,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    VersionMismatch,
)

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "Client",
    "Consistency",
    "Corruption",
    "DeadlineExceeded",
    "Entry",
    "InvalidArgument",
    "KvError",
    "OutcomeUnknown",
    "Overloaded",
    "Session",
    "ShardStats",
    "Stats",
    "Unavailable",
    "VersionMismatch",
]
