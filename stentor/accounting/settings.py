"""What accounting has to be told."""

import msgspec


class AccountingSettings(msgspec.Struct, frozen=True):
    """``default_max_tokens`` caps answers of requests that ask for no number; ``rate_limit_qps`` is per key, 0: off."""

    default_max_tokens: int = 2048
    rate_limit_qps: float = 0.0
