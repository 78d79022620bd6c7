"""What a request may use and what it cost: prices, limits, balances, the ledger and the usage events."""
