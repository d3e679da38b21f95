"""An echo for WebSockets that does on demand what a server may do. Prints its address first."""

import asyncio
import sys

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed


async def echo(socket):
    try:
        await answer(socket)
    except ConnectionClosed:
        pass


async def answer(socket):
    async for message in socket:
        match message:
            case "close 4001":
                await socket.close(4001, "as you wish")
                return
            case "compressed?":
                await socket.send(",".join(e.name for e in socket.protocol.extensions) or "no")
            case "subprotocol?":
                await socket.send(str(socket.subprotocol))
            case "headers?":
                await socket.send("\n".join(f"{k}: {v}" for k, v in socket.request.headers.raw_items()))
            case "ping":
                await (await socket.ping(b"are you there"))
                await socket.send("pong came")
            case "pieces":
                await socket.send(str(i) * 1000 for i in range(5))
            case _:
                await socket.send(message)


def choose(_, offered):
    return next((name for name in offered if name in ("one", "two")), None)


async def main():
    async with serve(
        echo, sys.argv[1], 0, max_size=64 << 20, select_subprotocol=choose, ping_interval=None
    ) as server:
        host, port = server.sockets[0].getsockname()[:2]
        print(f"{host}:{port}", flush=True)
        await server.serve_forever()


asyncio.run(main())
