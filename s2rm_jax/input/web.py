"""Download single files from web addresses that the user gives."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import Future
from http.client import HTTPException

from s2rm_jax.errors import UserError, one_line

MAX_BYTES = 50_000_000
TIMEOUT = 20.0  # seconds, for the whole download


def is_url(source: object) -> bool:
    """Return whether `source` is a web address and not a file."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def fetch(url: str, *, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT) -> bytes:
    """Download a file.

    Only for addresses that the local user gives. A server must not fetch addresses for its visitors, who could reach
    its internal network that way. Redirections are followed to other web addresses only.

    Raises:
        UserError: the download fails, has more than `max_bytes`, or takes more than `timeout` seconds.
    """
    outcome: Future[bytes] = Future()

    def download() -> None:
        try:
            outcome.set_result(_download(url, max_bytes, timeout))
        except BaseException as error:
            outcome.set_exception(error)

    # In a thread, because a server that sends its headers byte by byte would block the caller without limit.
    threading.Thread(target=download, daemon=True).start()
    try:
        return outcome.result(timeout)
    except TimeoutError:
        raise _timeout_error(url, timeout) from None


def _download(url: str, max_bytes: int, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    # Some servers, such as Wikimedia's, refuse programs without a User-Agent.
    try:
        address = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")  # of letters beyond ASCII and spaces
        request = urllib.request.Request(address, headers={"User-Agent": "s2rm-jax"})
        with web_opener().open(request, timeout=timeout) as response:
            content = bytearray()
            while chunk := response.read1(1 << 16):  # returns what has arrived, so that the deadline is checked
                content += chunk
                if len(content) > max_bytes:
                    raise UserError(f"{url} is larger than {max_bytes:,} bytes; download it and scale it down")
                if time.monotonic() > deadline:
                    raise TimeoutError
            missing = response.length or 0
    except urllib.error.HTTPError as error:
        error.close()
        reason = " ".join(str(error.reason).split())
        raise UserError(f"{url}: download failed: HTTP {error.code} {reason}; check the address") from error
    except TimeoutError as error:
        raise _timeout_error(url, timeout) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _timeout_error(url, timeout) from error
        raise UserError(f"{url}: download failed ({error.reason}); check the address and the network") from error
    except (HTTPException, OSError, ValueError) as error:
        raise UserError(f"{url}: download failed ({one_line(error)}); check the address") from error
    if missing:
        raise UserError(f"{url}: download stopped after {len(content):,} bytes; try again")
    return bytes(content)


def web_opener() -> urllib.request.OpenerDirector:
    """Return an opener for web addresses only; Python's default opener would follow a redirection to ftp://."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _timeout_error(url: str, timeout: float) -> UserError:
    return UserError(f"{url}: download took more than {timeout:g} seconds; try again, or download it first")
