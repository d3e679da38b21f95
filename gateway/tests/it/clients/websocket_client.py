"""The WebSocket library's client through the gateway: URL [CA]."""

import asyncio
import os
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode

URL = sys.argv[1]
ADDRESS = sys.argv[2]
CA = sys.argv[3] if len(sys.argv) > 3 else None


def client(url=URL, **options):
    host, port = ADDRESS.rsplit(":", 1)
    if CA:
        options["ssl"] = ssl.create_default_context(cafile=CA)
    return connect(
        url, host=host, port=int(port), proxy=None, max_size=64 << 20, ping_interval=None, **options
    )


async def main():
    async with client(subprotocols=["two", "three"]) as socket:
        assert socket.response.headers["x-request-id"]
        assert socket.subprotocol == "two", socket.subprotocol
        await socket.send("subprotocol?")
        assert await socket.recv() == "two"
        # permessage-deflate is between the two of them.
        await socket.send("compressed?")
        assert await socket.recv() == "permessage-deflate"
        for message in ("", "x", "ü" * 1000, b"", bytes(range(256)), "a" * (1 << 20)):
            await socket.send(message)
            assert await socket.recv() == message
        # What does not compress, and is larger than all buffers on the way.
        large = os.urandom(24 << 20)
        sending = asyncio.create_task(socket.send(large))
        assert await socket.recv() == large
        await sending
        # Fragments one by one, both ways.
        await socket.send(f"part {n};" for n in range(100))
        assert await socket.recv() == "".join(f"part {n};" for n in range(100))
        await socket.send("pieces")
        pieces = [piece async for piece in socket.recv_streaming()]
        assert "".join(pieces) == "".join(str(i) * 1000 for i in range(5)), pieces
        # Control frames between.
        await (await socket.ping(b"hello"))
        await socket.send("ping")
        assert await socket.recv() == "pong came"
        # Many small ones without waiting.
        for n in range(1000):
            await socket.send(str(n))
        assert [await socket.recv() for _ in range(1000)] == [str(n) for n in range(1000)]
        await socket.send("headers?")
        seen = (await socket.recv()).lower().split("\n")
        assert sum(line.startswith("upgrade:") for line in seen) == 1, seen
        connection = [line for line in seen if line.startswith("connection:")]
        # C16: no `close` beside `upgrade`.
        assert connection == ["connection: upgrade"], seen
        assert sum(line.startswith("sec-websocket-key:") for line in seen) == 1, seen
        assert "x-forwarded-for: 127.0.0.1" in seen, seen

    # Close codes pass in both directions.
    async with client(compression=None) as socket:
        await socket.send("compressed?")
        assert await socket.recv() == "no"
        await socket.send("close 4001")
        try:
            await socket.recv()
            raise AssertionError("no end")
        except ConnectionClosed as end:
            assert (end.rcvd.code, end.rcvd.reason) == (4001, "as you wish"), end
    async with client() as socket:
        await socket.close(4002, "our wish")
    assert socket.close_code == 4002, socket.close_code

    # Refused before the switch: an answer like any other.
    try:
        async with client(URL.replace("one.", "none.")):
            raise AssertionError("connected to nobody")
    except InvalidStatus as refused:
        assert refused.response.status_code == 404, refused

    print("done")


asyncio.run(main())
