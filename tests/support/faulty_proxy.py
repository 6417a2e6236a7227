"""A reverse proxy that injects faults into HTTP by a seeded plan: ``faulty_proxy.py TARGET PORT CONTROL``.

Requests and answers pass byte for byte, so that signatures stay valid. The port CONTROL accepts plans and
reports the injected faults; it answers even while the proxy is "down".
"""

import asyncio
import itertools
import random
import re
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

KINDS = (
    "error",
    "slow_down",
    "expired",
    "denied",
    "delay",
    "late",
    "cut_request",
    "cut_answer",
    "lost_answer",
)
"""Answered without the server: ``error`` 500, ``slow_down`` 503, ``expired`` 403 ExpiredToken,
``denied`` 403 AccessDenied.

``delay``: the request is delayed; ``late``: the answer is delayed. ``cut_request``: half the body reaches the
server, then both connections are cut. ``cut_answer``: half the body of the answer reaches the client.
``lost_answer``: the server executes the request, and the connection is cut without an answer.
"""

_HOP_BY_HOP = (
    "Connection",
    "Keep-Alive",
    "Transfer-Encoding",
    "Proxy-Connection",
    "Upgrade",
    "TE",
    "Trailer",
)
_PIECE = 1 << 16
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{}</Code><Message>injected</Message></Error>'
_ANSWERS = {
    "error": (500, "InternalError"),
    "slow_down": (503, "SlowDown"),
    "expired": (403, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
}


@dataclass(frozen=True)
class Plan:
    """Faults of requests: with the same seed, the n-th request of a method and path has the same one."""

    rates: dict[str, float] = field(default_factory=dict)
    """Share of the requests for each kind of fault."""
    seed: int = 0
    seconds: float = 3.0
    """Duration of ``delay`` and ``late``."""
    only: str = ""
    """Regular expression that is searched in "METHOD /path?query"; other requests have no faults."""
    limit: int | None = None
    """Maximum number of faults."""

    def __post_init__(self) -> None:
        unknown = set(self.rates) - set(KINDS)
        if unknown or sum(self.rates.values()) > 1 + 1e-9:
            raise ValueError(f"rates: {self.rates}; kinds are {', '.join(KINDS)}, together 1 at most")
        re.compile(self.only)

    def draw(self, what: str, number: int) -> str | None:
        """Return the fault of request ``number`` among those with the text ``what``, if any."""
        drawn = random.Random(f"{self.seed} {number} {what}").random()
        for kind in sorted(self.rates):
            drawn -= self.rates[kind]
            if drawn < 0:
                return kind
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the format of the control port."""
        return asdict(self)


class CutError(Exception):
    """The connection to the client has to be cut."""


class Proxy:
    """Listens on ``port`` for clients of ``target``, and on ``control`` for the test."""

    def __init__(self, target: str, port: int, control: int) -> None:
        self._target, self._port, self._control = target.rstrip("/"), port, control
        self._begin = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._faults: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._back: asyncio.Task[None] | None = None
        self._follow(Plan())

    async def run(self) -> None:
        """Serve until the process is killed."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        # A new connection for each request: aiohttp repeats requests on closed connections.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as self._session:
            self._server = web.Server(
                self._handle, auto_decompress=False, max_line_size=1 << 16, max_field_size=1 << 16
            )
            self._runner = web.ServerRunner(self._server, shutdown_timeout=0)
            await self._runner.setup()
            await self._listen()
            app = web.Application()
            routes: list[tuple[str, str, Callable[[web.Request], Awaitable[Any]]]] = [
                ("GET", "/counts", self._tell_counts),
                ("GET", "/faults", self._tell_faults),
                ("PUT", "/plan", self._take_plan),
                ("PUT", "/down", self._take_down),
            ]
            for method, path, handler in routes:
                app.router.add_route(method, path, handler)
            control = web.AppRunner(app)
            await control.setup()
            await web.TCPSite(control, "127.0.0.1", self._control).start()
            await asyncio.Event().wait()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._counts["requests"] += 1
        fault = self._draw(request)
        try:
            return await self._serve(request, fault)
        except (CutError, ConnectionError, asyncio.IncompleteReadError, aiohttp.ClientPayloadError):
            pass
        except aiohttp.ClientError as error:  # the server is down: the client sees the same
            if fault != "cut_request":
                self._count("unreachable", request, f"{type(error).__name__}: {error}")
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=502)  # which no client receives

    async def _serve(self, request: web.BaseRequest, fault: str | None) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault in _ANSWERS:
            async for _ in request.content.iter_chunked(_PIECE):
                pass
            status, code = _ANSWERS[fault]
            return web.Response(status=status, text=_XML.format(code), content_type="application/xml")
        if fault == "delay":
            await asyncio.sleep(self._plan.seconds)
        if fault == "cut_request" and not request.can_read_body:
            raise CutError
        async with self._forward(request, cut=fault == "cut_request") as answer:
            if fault in ("late", "lost_answer"):
                content = await answer.read()
                if fault == "lost_answer":
                    raise CutError
                await asyncio.sleep(self._plan.seconds)
                return await self._give(request, answer, _whole(content), None)
            half = None
            if fault == "cut_answer":
                half = (answer.content_length or 0) // 2
                if request.method == "HEAD" or half == 0:
                    raise CutError
            return await self._give(request, answer, answer.content.iter_chunked(_PIECE), half)

    def _forward(self, request: web.BaseRequest, cut: bool) -> Any:
        headers = _end_to_end(request.headers)
        headers.popall("Expect", None)
        return self._session.request(
            request.method,
            URL(self._target + request.raw_path, encoded=True),
            headers=headers,
            data=_body(request, cut) if request.can_read_body else None,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def _give(
        self,
        request: web.BaseRequest,
        answer: aiohttp.ClientResponse,
        body: AsyncIterator[bytes],
        half: int | None,
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers)
        )
        if answer.headers.get("Transfer-Encoding", "").lower() == "chunked":
            response.enable_chunked_encoding()
        await response.prepare(request)
        async for piece in body:
            if half is not None and len(piece) >= half:
                await response.write(piece[:half])
                await asyncio.sleep(0.05)  # so that written bytes are sent before the connection is cut
                raise CutError
            await response.write(piece)
            half = None if half is None else half - len(piece)
        if half is not None:
            raise CutError
        await response.write_eof()
        return response

    def _draw(self, request: web.BaseRequest) -> str | None:
        plan, what = self._plan, f"{request.method} {request.raw_path}"
        if not re.search(plan.only, what) or self._left == 0:
            return None
        base = what.partition("?")[0]
        fault = plan.draw(base, next(self._numbers.setdefault(base, itertools.count())))
        if fault is not None:
            self._left = None if self._left is None else self._left - 1
            self._count(fault, request)
        return fault

    def _count(self, kind: str, request: web.BaseRequest, reason: str = "") -> None:
        self._counts[kind] += 1
        seconds = round(time.monotonic() - self._begin, 3)
        what = f"{request.method} {request.raw_path}"
        self._faults.append({"seconds": seconds, "kind": kind, "request": what, "reason": reason})

    def _follow(self, plan: Plan) -> None:
        self._plan, self._left = plan, plan.limit
        self._numbers: dict[str, itertools.count[int]] = {}

    async def _listen(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=512)
        await self._site.start()

    async def _return(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._listen()

    async def _tell_counts(self, request: web.Request) -> web.Response:
        return web.json_response({**dict.fromkeys(KINDS, 0), "down": 0, "unreachable": 0, **self._counts})

    async def _tell_faults(self, request: web.Request) -> web.Response:
        return web.json_response(list(self._faults))

    async def _take_plan(self, request: web.Request) -> web.Response:
        self._follow(Plan(**await request.json()))
        return web.json_response({})

    async def _take_down(self, request: web.Request) -> web.Response:
        seconds = float((await request.json())["seconds"])
        if self._back is not None and not self._back.done():
            self._back.cancel()
        else:
            await self._site.stop()
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        self._counts["down"] += 1
        self._back = asyncio.create_task(self._return(seconds))
        return web.json_response({})


def _end_to_end(headers: Any) -> CIMultiDict[str]:
    """Return the headers without those of a single connection."""
    kept = CIMultiDict(headers)
    for name in _HOP_BY_HOP:
        kept.popall(name, None)
    return kept


async def _body(request: web.BaseRequest, cut: bool) -> AsyncIterator[bytes]:
    """Yield the body of a request as it arrives, or half of it for ``cut_request``."""
    left = (request.content_length or 0) // 2
    async for piece in request.content.iter_chunked(_PIECE):
        if not cut:
            yield piece
        elif len(piece) < left:
            left -= len(piece)
            yield piece
        else:
            yield piece[:left]
            break
    if cut:
        await asyncio.sleep(0.05)  # so that written bytes reach the server before the connection is cut
        raise CutError


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content


if __name__ == "__main__":
    asyncio.run(Proxy(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).run())
