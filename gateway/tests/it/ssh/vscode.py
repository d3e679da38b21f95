"""The connections of VS Code's Remote - SSH, without VS Code.

The extension runs `ssh -T -D PORT -o ConnectTimeout=15 HOST bash`, feeds its script of installation
to the shell, reads from the script's lines where the server listens, and makes its WebSockets
through the SOCKS port; the shell stays. With `remote.SSH.remoteServerListenOnSocket` the server is
reached by its Unix socket. After a loss it starts over and finds the server that runs.

Arguments: folder that the container sees too, then the words of `ssh` up to the host.
Prints `ok SCENARIO` for each; any failure ends it with a trace.
"""

import asyncio
import hashlib
import os
import re
import socket
import sys

from websockets.asyncio.client import connect, unix_connect
from websockets.exceptions import ConnectionClosed

FOLDER, SSH = sys.argv[1], sys.argv[2:]
DEADLINE = 20
SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vscode_server.py")
# More than all windows on the way hold.
NOISE = hashlib.shake_256(b"edd").digest(3 << 20)

SCRIPT = f"""
# Much as the extension's: find the server that runs, else start one that outlives this shell.
echo 5a6f: running
cd {FOLDER} || exit 1
if [ -f pid ] && kill -0 "$(cat pid)" 2>/dev/null; then echo "Found running server..."; else
rm -f agent.sock
PYTHONPATH='{os.environ["PYTHONPATH"]}' nohup '{sys.executable}' '{SERVER}' agent.sock \
>agent.log 2>&1 </dev/null &
echo $! >pid
fi
for n in $(seq 100); do grep -qs listening agent.log && break; sleep 0.1; done
line=$(grep listening agent.log)
echo "5a6f: start"
echo "listeningOn==$(echo "$line" | sed 's/.*listening on \\([0-9]*\\) .*/\\1/')=="
echo "connectionToken==$(echo "$line" | sed 's/.* token //')=="
echo "osReleaseId==$(uname -s)=="
echo "5a6f: end"
"""


def good(name):
    print("ok", name)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Remote:
    """One `ssh` of the extension's with the shell that it stays in."""

    def __init__(self, process, local):
        self.process, self.local = process, local

    @classmethod
    async def start(cls, shell, forward, local):
        words = [SSH[0], "-T", *forward, "-o", "ConnectTimeout=15", *SSH[1:], shell]
        pipe = asyncio.subprocess.PIPE
        self = cls(await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe), local)
        self.process.stdin.write(SCRIPT.encode())
        self.said = ""
        async with asyncio.timeout(DEADLINE):
            while "5a6f: end" not in self.said:
                line = await self.process.stdout.readline()
                assert line, self.said
                self.said += line.decode()
        self.port = int(self.told("listeningOn"))
        self.token = self.told("connectionToken")
        return self

    def told(self, name):
        return re.search(f"{name}==(.*)==", self.said)[1]

    async def dial(self):
        """To the server's port by the SOCKS port of `ssh`."""
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", self.local))
        await loop.sock_sendall(sock, b"\x05\x01\x00")
        assert await loop.sock_recv(sock, 2) == b"\x05\x00"
        ask = b"\x05\x01\x00\x03\x09127.0.0.1" + self.port.to_bytes(2, "big")
        await loop.sock_sendall(sock, ask)
        answer = b""
        while len(answer) < 10:
            more = await loop.sock_recv(sock, 10 - len(answer))
            assert more, answer
            answer += more
        assert answer[1] == 0, answer
        return sock

    def address(self):
        return f"ws://127.0.0.1:{self.port}/stable-5a6f?connectionToken={self.token}"

    async def open(self, name):
        """A WebSocket, and the server's answer to its name."""
        options = dict(max_size=None, compression=None, proxy=None)
        websocket = await connect(self.address(), sock=await self.dial(), **options)
        await websocket.send(name)
        return websocket, await websocket.recv()

    async def end(self):
        """As when the window is closed: the shell's input ends."""
        self.process.stdin.close()
        async with asyncio.timeout(DEADLINE):
            assert await self.process.wait() == 0


async def bulk(websocket):
    """Much both ways at once."""

    async def send():
        for at in range(0, len(NOISE), 65536):
            await websocket.send(NOISE[at : at + 65536])

    sending = asyncio.create_task(send())
    back = bytearray()
    while len(back) < len(NOISE):
        back += await websocket.recv()
    await sending
    assert back == NOISE


async def typing(websocket, done):
    """Small ones beside, each there and back; the longest time of one."""
    loop = asyncio.get_running_loop()
    longest = 0
    while not done.is_set():
        begin = loop.time()
        await websocket.send("key")
        assert await websocket.recv() == "key"
        longest = max(longest, loop.time() - begin)
        await asyncio.sleep(0.01)
    return longest


async def work(remote, time):
    """What a window does: management, extension host and tunnels, `time` for the nth time."""
    names = ["management", "extension host", "tunnel 1", "tunnel 2", "tunnel 3"]
    opened = await asyncio.gather(*(remote.open(name) for name in names))
    for name, (_, said) in zip(names, opened):
        assert said.startswith(f"{name} {time} "), said
    keys, *rest = [websocket for websocket, _ in opened]
    done = asyncio.Event()
    typed = asyncio.create_task(typing(keys, done))
    await asyncio.gather(*(bulk(websocket) for websocket in rest))
    done.set()
    longest = await typed
    assert longest < 2, longest
    return [websocket for websocket, _ in opened]


async def main():
    local = free_port()
    remote = await Remote.start("bash", ["-D", str(local)], local)
    good("server started by a script on standard input")
    opened = await work(remote, 1)
    good("several connections through the SOCKS port")
    try:
        await connect(remote.address() + "x", sock=await remote.dial(), proxy=None)
    except Exception as refused:
        assert "403" in str(refused), refused
    remote.process.kill()
    await remote.process.wait()
    for websocket in opened:
        try:
            while True:
                await websocket.recv()
        except ConnectionClosed:
            pass
    good("killed")

    again = await Remote.start("sh", ["-D", str(local)], local)
    assert "Found running server" in again.said and again.port == remote.port
    opened = await work(again, 2)
    good("the same server after a loss")
    # Those that the lost client had are gone in the container, too.
    async with asyncio.timeout(DEADLINE):
        while True:
            websocket, said = await again.open("asks")
            await websocket.close()
            if said.split()[-1] == "6":
                break
    for websocket in opened:
        await websocket.close()
    await again.end()
    good("closed")

    # The server's Unix socket instead, behind a port of the client's.
    local = free_port()
    forward = ["-L", f"127.0.0.1:{local}:{FOLDER}/agent.sock"]
    remote = await Remote.start("sh", forward, local)

    async def to_local():
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", local))
        return sock

    remote.dial = to_local
    for websocket in await work(remote, 3):
        await websocket.close()
    good("Unix socket")
    remote.process.stdin.write(b"kill $(cat pid)\n")
    await remote.end()


asyncio.run(asyncio.wait_for(main(), 50))
