"""What the kernel keeps for the other end of a connection on this machine because that hasn't read it yet."""

import socket
import struct
from pathlib import Path

Address = tuple[str, int]


def unread_bytes(reader: Address, writer: Address) -> int:
    """Bytes between ``writer`` and ``reader`` (IPv4) that the reader's process has yet to take; 0 for no connection."""
    read_end, write_end = _spell(reader), _spell(writer)
    left = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split(None, 5)
        if (fields[1], fields[2]) == (read_end, write_end):
            left += int(fields[4].partition(":")[2], 16)
        elif (fields[1], fields[2]) == (write_end, read_end):
            left += int(fields[4].partition(":")[0], 16)
    return left


def _spell(address: Address) -> str:
    """As the kernel's table has it: the four bytes as a number of this machine's."""
    (number,) = struct.unpack("=I", socket.inet_aton(address[0]))
    return f"{number:08X}:{address[1]:04X}"
