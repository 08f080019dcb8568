"""The rules of a webhook's URL."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from urllib.parse import urlsplit

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests.validation import refusal

MAX_URL_LENGTH = 2000
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_INSIDE = [
    ipaddress.ip_network(network)
    # Site-local, segment routing, documentation, 6to4 relays: Python's ipaddress regards them as global.
    for network in ("fec0::/10", "5f00::/16", "3fff::/20", "192.88.99.0/24")
]


def check_webhook_url(url: str | None, *, allow_insecure: bool) -> None:
    """Check that a URL may be called (``invalid_webhook``); None passes.

    Its name is resolved, and the address checked, when it is called. ``allow_insecure``, a setting of the installation,
    also allows ``http:`` and addresses that are not public.
    """
    if url is None:
        return
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise _invalid("is not a URL") from None
    if len(url) > MAX_URL_LENGTH:
        raise _invalid(f"is longer than {MAX_URL_LENGTH} characters")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _invalid("holds characters that have to be percent-encoded")
    if parts.scheme != "https" and not (allow_insecure and parts.scheme == "http"):
        raise _invalid("must begin with https://")
    if not host or "@" in parts.netloc or parts.fragment:
        raise _invalid("must name a host, and no user, password or fragment")
    with suppress(ValueError):  # a name
        if not allow_insecure and not is_public(ipaddress.ip_address(host)):
            raise _invalid("is at an address that is not public")


def is_public(address: _Address) -> bool:
    """Whether an address is on the public internet, and not inside this machine, its network or a cloud.

    An IPv6 address that carries an IPv4 address is public if that one is.
    """
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo[1] if address.teredo is not None else None
        carried = (address.ipv4_mapped, address.sixtofour, teredo, _nat64(address))
        found = next((one for one in carried if one is not None), None)
        if found is not None:
            return is_public(found)
    if any(address in network for network in _INSIDE if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in ipaddress.IPv6Network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _invalid(what: str) -> ExportFailure:
    message = f"{what}; expected something like https://hooks.example.com/exports, or leave it out."
    return refusal(FailureCode.INVALID_WEBHOOK, "webhook_url", message)
