"""Stands in for the server that VS Code's Remote - SSH installs in a container: WebSockets on a
loopback port, and on a Unix socket, with what runs in it known again after a reconnection.

Arguments: path of the Unix socket. Ends by itself when nobody has come for half a minute.
"""

import asyncio
import os
import sys

from websockets.asyncio.server import serve, unix_serve

TOKEN = os.urandom(8).hex()
IDLE = 30
live = 0
known = {}


async def session(socket):
    """The first message names what the client is; later ones come back as they are."""
    global live
    live += 1
    try:
        name = await socket.recv()
        known[name] = known.get(name, 0) + 1
        await socket.send(f"{name} {known[name]} {live}")
        async for message in socket:
            await socket.send(message)
    finally:
        live -= 1


def only_with_token(connection, request):
    if f"connectionToken={TOKEN}" not in request.path:
        return connection.respond(403, "Forbidden\n")


async def main():
    options = dict(max_size=None, compression=None, process_request=only_with_token)
    async with serve(session, "127.0.0.1", 0, **options) as server:
        async with unix_serve(session, sys.argv[1], **options):
            port = server.sockets[0].getsockname()[1]
            print(f"Extension host agent listening on {port} token {TOKEN}", flush=True)
            idle = 0
            while idle < IDLE:
                await asyncio.sleep(1)
                idle = 0 if live else idle + 1


asyncio.run(main())
