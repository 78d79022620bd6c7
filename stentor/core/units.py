"""Units that sizes are counted in."""

MIB = 1 << 20
