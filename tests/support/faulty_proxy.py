"""A reverse proxy that injects faults into HTTP by a seeded plan: ``faulty_proxy.py TARGET PORT CONTROL``.

Requests and answers pass byte for byte, so that signatures stay valid. The port CONTROL takes the plan and
tells what was injected; it goes on answering while the proxy is "down".
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

KINDS = ("error", "slow_down", "expired", "delay", "late", "cut_request", "cut_answer", "lost_answer")
"""Answered without asking the server: ``error`` 500, ``slow_down`` 503, ``expired`` 403 ExpiredToken.

``delay``: the request waits, then goes its way; ``late``: the answer waits. ``cut_request``: half the body
reaches the server, then both connections are cut. ``cut_answer``: half the body of the answer reaches the
client. ``lost_answer``: the server did what was asked, and the connection is cut.
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
}


@dataclass(frozen=True)
class Plan:
    """Which requests meet which fault: the n-th request of a method and path always the same for a seed."""

    rates: dict[str, float] = field(default_factory=dict)
    """Share of the requests by the kind of fault."""
    seed: int = 0
    seconds: float = 3.0
    """How long ``delay`` and ``late`` last."""
    only: str = ""
    """A regular expression that is looked for in "METHOD /path?query"; others pass."""
    limit: int | None = None
    """Faults after which there are no more."""

    def __post_init__(self) -> None:
        unknown = set(self.rates) - set(KINDS)
        if unknown or sum(self.rates.values()) > 1 + 1e-9:
            raise ValueError(f"rates: {self.rates}; kinds are {', '.join(KINDS)}, together 1 at most")
        re.compile(self.only)

    def draw(self, what: str, number: int) -> str | None:
        """The fault of the ``number``-th request of its kind ``what``, if any."""
        drawn = random.Random(f"{self.seed} {number} {what}").random()
        for kind in sorted(self.rates):
            drawn -= self.rates[kind]
            if drawn < 0:
                return kind
        return None

    def to_json(self) -> dict[str, Any]:
        """As the control port takes it."""
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
        # A connection of its own for each request: aiohttp repeats requests on those that turn out closed.
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
        except aiohttp.ClientError as error:  # the server is away: the client sees what he would see of it
            if fault != "cut_request":
                self._count("unreachable", request, f"{type(error).__name__}: {error}")
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=502)  # to nobody

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
                await asyncio.sleep(0.05)  # what was written leaves before the connection is cut
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
    """Headers without those that hold for one connection only."""
    kept = CIMultiDict(headers)
    for name in _HOP_BY_HOP:
        kept.popall(name, None)
    return kept


async def _body(request: web.BaseRequest, cut: bool) -> AsyncIterator[bytes]:
    """The body of a request as it comes; where it is cut, half of it."""
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
        await asyncio.sleep(0.05)  # what was written reaches the server before the connection is cut
        raise CutError


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content


if __name__ == "__main__":
    asyncio.run(Proxy(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).run())
