"""SSH clients written in Python against the gateway.

Arguments: library, host, port, user, key file, host key line, folder that the container sees too.
Prints `ok SCENARIO` for each; any failure ends it with a trace.
"""

import asyncio
import base64
import hashlib
import os
import socket
import sys
import threading

LIBRARY, HOST, PORT, USER, KEY, HOST_KEY, FOLDER = sys.argv[1:8]
PORT = int(PORT)
DEADLINE = 20
NOISE = hashlib.shake_256(b"edd").digest(3 << 20)


def good(name):
    print("ok", name)


class Echo:
    """Echoes until the end of data; `address` is where."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=[connection], daemon=True).start()

    def serve(self, connection):
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)


def with_paramiko():
    import paramiko

    def connected():
        client = paramiko.SSHClient()
        algorithm, blob = HOST_KEY.split()[:2]
        key = paramiko.Ed25519Key(data=base64.b64decode(blob))
        client.get_host_keys().add(f"[{HOST}]:{PORT}", algorithm, key)
        options = dict(key_filename=KEY, look_for_keys=False, allow_agent=False, timeout=DEADLINE)
        client.connect(HOST, PORT, USER, **options)
        return client

    client = connected()
    transport = client.get_transport()

    stdin, stdout, stderr = client.exec_command("echo out; echo err >&2; exit 3", timeout=DEADLINE)
    assert stdout.read() == b"out\n" and stderr.read() == b"err\n"
    assert stdout.channel.recv_exit_status() == 3
    good("streams and exit status")

    stdin, stdout, _ = client.exec_command("cat; echo end", timeout=DEADLINE)
    sending = threading.Thread(target=lambda: (stdin.write(NOISE), stdin.channel.shutdown_write()))
    sending.start()
    back = stdout.read()
    sending.join()
    assert back == NOISE + b"end\n", len(back)
    good("end of input")

    channel = transport.open_session(timeout=DEADLINE)
    channel.settimeout(DEADLINE)
    channel.get_pty("xterm", 100, 40)
    channel.update_environment({"EDD_COLOUR": "green"})
    channel.invoke_shell()
    channel.sendall(b"stty size; echo $EDD_COLOUR$TERM\n")
    seen = b""
    while b"40 100" not in seen or b"greenxterm" not in seen:
        seen += channel.recv(4096)
    channel.resize_pty(132, 43)
    channel.sendall(b"stty size; exit 7\n")
    while data := channel.recv(4096):
        seen += data
    assert b"43 132" in seen, seen
    assert channel.recv_exit_status() == 7
    good("terminal")

    channel = transport.open_session(timeout=DEADLINE)
    try:
        channel.invoke_subsystem("no-such")
        raise AssertionError("a subsystem that there is not")
    except paramiko.SSHException:
        good("refused subsystem")

    here, there = os.path.join(FOLDER, "here"), os.path.join(FOLDER, "there")
    with open(here, "wb") as file:
        file.write(NOISE)
    with client.open_sftp() as sftp:
        sftp.put(here, there)
        sftp.get(there, here + "2")
        assert sftp.stat(there).st_size == len(NOISE)
    with open(here + "2", "rb") as file:
        assert file.read() == NOISE
    good("sftp")

    echo = Echo()
    channel = transport.open_channel("direct-tcpip", echo.address, ("127.0.0.1", 1), timeout=DEADLINE)
    channel.settimeout(DEADLINE)
    channel.sendall(b"forth")
    channel.shutdown_write()
    assert channel.makefile().read() == b"forth"
    good("direct-tcpip")
    try:
        transport.open_channel("direct-tcpip", ("127.0.0.1", 1), ("127.0.0.1", 1), timeout=DEADLINE)
        raise AssertionError("a port where nobody listens")
    except paramiko.ChannelException as refused:
        assert refused.code == 2, refused
    good("reason of a refusal")

    port = transport.request_port_forward("127.0.0.1", 0)
    assert port
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as caller:
        called = transport.accept(DEADLINE)
        caller.sendall(b"knock")
        assert called.recv(5) == b"knock"
        called.sendall(b"who")
        called.close()
        assert caller.recv(3) == b"who" and caller.recv(1) == b""
    transport.cancel_port_forward("127.0.0.1", port)
    good("remote forward")

    def one(number, answers):
        _, stdout, _ = client.exec_command(f"echo {number}; exit {number}", timeout=DEADLINE)
        text = stdout.read()
        answers[number] = (text, stdout.channel.recv_exit_status())

    answers = {}
    threads = [threading.Thread(target=one, args=(n, answers)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert answers == {n: (f"{n}\n".encode(), n) for n in range(8)}, answers
    good("many at once")

    client.close()

    # Key exchanges in the middle. Paramiko hangs by itself if a channel's close comes in one, so
    # there is but one, and its command waits until all has been read.
    client = connected()
    transport = client.get_transport()
    transport.packetizer.REKEY_BYTES = 1 << 20
    stdin, stdout, _ = client.exec_command("head -c 8000000 /dev/zero; read line", timeout=DEADLINE)
    assert len(stdout.read(8_000_000)) == 8_000_000
    transport.packetizer.REKEY_BYTES = 1 << 30
    stdin.write("done\n")
    assert stdout.channel.recv_exit_status() == 0
    good("rekey")
    client.close()


async def with_asyncssh():
    import asyncssh

    hosts = asyncssh.import_known_hosts(f"[{HOST}]:{PORT} {HOST_KEY}\n")
    options = dict(port=PORT, username=USER, client_keys=[KEY], known_hosts=hosts, config=[])
    options["agent_path"] = None
    # A key exchange after each MiB, in all of what follows.
    connection = await asyncssh.connect(HOST, rekey_bytes="1M", **options)

    done = await connection.run("echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_status) == ("out\n", "err\n", 3), done
    good("streams and exit status")

    done = await connection.run("cat; echo end", input=NOISE, encoding=None)
    assert done.stdout == NOISE + b"end\n", len(done.stdout)
    good("end of input, with rekeys")

    done = await connection.run("kill -TERM $$")
    assert done.exit_signal[0] == "TERM", done.exit_signal
    good("exit signal")

    process = await connection.create_process(
        "stty size; read line; stty size; echo $EDD_COLOUR",
        term_type="xterm",
        term_size=(100, 40),
        env={"EDD_COLOUR": "green"},
    )
    assert (await process.stdout.readline()).strip() == "40 100"
    process.change_terminal_size(132, 43)
    process.stdin.write("go\n")
    rest = await process.stdout.read()
    assert "43 132" in rest and "green" in rest, rest
    good("terminal")

    async with connection.start_sftp_client() as sftp:
        path = os.path.join(FOLDER, "asyncssh")
        async with sftp.open(path, "wb") as file:
            await file.write(NOISE)
        async with sftp.open(path, "rb") as file:
            assert await file.read() == NOISE
    good("sftp")

    runs = [connection.run(f"sleep 0.2; exit {n}") for n in range(20)]
    assert [done.exit_status for done in await asyncio.gather(*runs)] == list(range(20))
    good("many at once")

    echo = Echo()

    async def talk(reader, writer):
        writer.write(NOISE)
        writer.write_eof()
        assert await reader.read() == NOISE
        writer.close()

    await talk(*await connection.open_connection(*echo.address, encoding=None))
    good("direct-tcpip")
    try:
        await connection.open_connection("127.0.0.1", 1)
        raise AssertionError("a port where nobody listens")
    except asyncssh.ChannelOpenError as refused:
        assert refused.code == asyncssh.OPEN_CONNECT_FAILED, refused
    good("reason of a refusal")

    async with await connection.forward_remote_port("127.0.0.1", 0, *echo.address) as listener:
        assert listener.get_port()
        for _ in range(3):
            await talk(*await asyncio.open_connection("127.0.0.1", listener.get_port()))
    good("remote port")

    path = os.path.join(FOLDER, "asyncssh.sock")
    local = os.path.join(FOLDER, "asyncssh.local")
    server = await asyncio.start_unix_server(pipe, local)
    async with await connection.forward_remote_path(path, local):
        await talk(*await asyncio.open_unix_connection(path))
    await talk(*await connection.open_unix_connection(local, encoding=None))
    server.close()
    good("sockets")

    # Unknown global requests are answered, in order with others.
    replies = [
        connection._make_global_request(b"keepalive@openssh.com"),
        connection._make_global_request(b"unheard-of@example.com"),
        connection._make_global_request(b"keepalive@openssh.com"),
    ]
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*replies)
    good("global requests")
    connection.close()
    await connection.wait_closed()


async def pipe(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


if LIBRARY == "paramiko":
    with_paramiko()
else:
    asyncio.run(asyncio.wait_for(with_asyncssh(), 50))
