"""The address a request comes from, as the throttle counts it."""

from __future__ import annotations

import ipaddress

from starlette.requests import Request


def client_address(request: Request, trusted_proxy: bool) -> str:
    """The caller's address; behind a trusted proxy the last one that the proxy wrote down.

    A proxy may add a header line of its own below one that the caller sent, so the last entry of the last line
    counts. A port is left out (it changes with every connection), and of an IPv6 address only the network of 64
    bits is kept: whoever has one address has them all.
    """
    if trusted_proxy:
        forwarded = ",".join(request.headers.getlist("x-forwarded-for")).split(",")[-1].strip()
        if forwarded:
            return _counted(forwarded)[:64]
    return _counted(request.client.host)[:64] if request.client else ""


def _counted(written: str) -> str:
    bare = written[1:].partition("]")[0] if written.startswith("[") else written
    if bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        address = ipaddress.ip_address(bare.partition("%")[0])
    except ValueError:
        return written
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
