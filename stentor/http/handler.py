"""What answers a route, and who may ask without a key: the callers that no key stands for."""

from collections.abc import Awaitable, Callable

from stentor.core.ids import KeyId, ProjectId, TierId, UserId
from stentor.core.principal import SCOPES, Principal
from stentor.http.connection import Connection

Params = dict[str, str]
Handler = Callable[[Connection, Principal, Params], Awaitable[None]]

ANONYMOUS = Principal(KeyId(""), UserId(""), ProjectId(""), TierId(""), frozenset())
OPERATOR = Principal(KeyId("operator"), UserId("operator"), ProjectId(""), TierId(""), frozenset(SCOPES))
