"""Client libraries of SSH written in C against the gateway: libssh2 and libssh.

Arguments: library, host, port, user, key file, host key line, folder that the container sees too.
Prints `ok SCENARIO` for each; any failure ends it with a trace.
"""

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
HOST_KEY = base64.b64decode(HOST_KEY.split()[1])


def good(name):
    print("ok", name)


def echo():
    """Where all is echoed until the end of data."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection):
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    def accept():
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=[connection], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()


def connected():
    return socket.create_connection((HOST, PORT), DEADLINE)


def with_libssh2():
    from ssh2 import session, sftp, utils

    assert utils.version() >= b"1.11"
    ssh = session.Session()
    ssh.set_timeout(DEADLINE * 1000)
    ssh.handshake(connected())
    key, _ = ssh.hostkey()
    assert key == HOST_KEY
    ssh.userauth_publickey_fromfile(USER, KEY)

    def read(channel, stream=0):
        data = []
        while True:
            size, chunk = channel.read_ex(65536, stream)
            if size <= 0:
                return b"".join(data)
            data.append(chunk)

    def end(channel):
        channel.wait_eof()
        channel.close()
        channel.wait_closed()
        return channel.get_exit_status()

    channel = ssh.open_session()
    channel.execute("echo out; echo err >&2; exit 3")
    assert (read(channel), read(channel, 1)) == (b"out\n", b"err\n")
    assert end(channel) == 3
    good("streams and exit status")

    # Each request is answered before the next is made.
    channel = ssh.open_session()
    channel.setenv("EDD_COLOUR", "green")
    channel.pty("xterm")
    channel.shell()
    channel.write(b"stty size; echo $EDD_COLOUR$TERM; exit 7\n")
    seen = read(channel)
    assert b"24 80" in seen and b"greenxterm" in seen, seen
    assert end(channel) == 7
    good("terminal")

    channel = ssh.open_session()
    channel.execute("sha256sum")
    for at in range(0, len(NOISE), 30000):
        channel.write(NOISE[at : at + 30000])
    channel.send_eof()
    assert read(channel).split()[0].decode() == hashlib.sha256(NOISE).hexdigest()
    assert end(channel) == 0
    good("end of input")

    there = os.path.join(FOLDER, "libssh2")
    files = ssh.sftp_init()
    flags = sftp.LIBSSH2_FXF_CREAT | sftp.LIBSSH2_FXF_WRITE
    with files.open(there, flags, 0o600) as file:
        file.write(NOISE)
    with files.open(there, sftp.LIBSSH2_FXF_READ, 0) as file:
        assert b"".join(chunk for _, chunk in file) == NOISE
    good("sftp")

    channel, info = ssh.scp_recv2(there)
    data = b""
    while len(data) < info.st_size:
        size, chunk = channel.read(min(65536, info.st_size - len(data)))
        assert size > 0, size
        data += chunk
    assert data == NOISE
    channel.close()
    good("scp")

    address, port = echo()
    channel = ssh.direct_tcpip(address, port)
    channel.write(b"forth")
    channel.send_eof()
    assert read(channel) == b"forth"
    channel.close()
    good("direct-tcpip")
    try:
        ssh.direct_tcpip("127.0.0.1", 1)
        raise AssertionError("a port where nobody listens")
    except Exception as refused:
        assert "Channel" in type(refused).__name__, refused
    good("refusal")

    listener, port = ssh.forward_listen_ex(4, "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as caller:
        called = listener.forward_accept()
        caller.sendall(b"knock")
        assert called.read()[1] == b"knock"
        called.write(b"who")
        called.close()
        assert caller.recv(3) == b"who" and caller.recv(1) == b""
    listener.forward_cancel()
    good("remote forward")
    ssh.disconnect()


def with_libssh():
    from ssh import options, session

    ssh = session.Session()
    ssh.options_set(options.HOST, HOST)
    ssh.options_set_port(PORT)
    ssh.options_set(options.USER, USER)
    sock = connected()
    sock.settimeout(None)
    ssh.set_socket(sock)
    ssh.connect()
    assert base64.b64decode(ssh.get_server_publickey().export_pubkey_base64()) == HOST_KEY
    from ssh import key

    ssh.userauth_publickey(key.import_privkey_file(KEY))

    def read(channel, stderr=False):
        data = []
        while True:
            size, chunk = channel.read(65536, is_stderr=stderr)
            if size <= 0:
                return b"".join(data)
            data.append(chunk)

    def opened():
        channel = ssh.channel_new()
        channel.open_session()
        return channel

    def end(channel):
        channel.send_eof()
        channel.close()
        return channel.get_exit_status()

    channel = opened()
    channel.request_exec("echo out; echo err >&2; exit 3")
    assert (read(channel), read(channel, True)) == (b"out\n", b"err\n")
    assert end(channel) == 3
    good("streams and exit status")

    channel = opened()
    channel.request_env("EDD_COLOUR", "green")
    channel.request_pty_size("xterm", 100, 40)
    channel.request_shell()
    channel.write(b"stty size; echo $EDD_COLOUR$TERM\n")
    seen = b""
    while b"40 100" not in seen or b"greenxterm" not in seen:
        seen += channel.read(4096)[1]
    channel.change_pty_size(132, 43)
    channel.write(b"stty size; exit 7\n")
    seen = read(channel)
    assert b"43 132" in seen, seen
    assert end(channel) == 7
    good("terminal")

    channel = opened()
    channel.request_exec("sha256sum")
    channel.write(NOISE)
    channel.send_eof()
    assert read(channel).split()[0].decode() == hashlib.sha256(NOISE).hexdigest()
    channel.close()
    good("end of input")

    channels = [opened() for _ in range(8)]
    for number, channel in enumerate(channels):
        channel.request_exec(f"echo {number}; exit {number}")
    for number, channel in enumerate(channels):
        assert read(channel) == f"{number}\n".encode()
        assert end(channel) == number
    good("many at once")

    there = os.path.join(FOLDER, "libssh")
    files = ssh.sftp_new()
    files.init()
    with files.open(there, os.O_CREAT | os.O_WRONLY, 0o600) as file:
        for at in range(0, len(NOISE), 30000):
            file.write(NOISE[at : at + 30000])
    with files.open(there, os.O_RDONLY, 0) as file:
        assert b"".join(chunk for _, chunk in file) == NOISE
    good("sftp")

    address, port = echo()
    channel = ssh.channel_new()
    channel.open_forward(address, port, "127.0.0.1", 1)
    channel.write(b"forth")
    channel.send_eof()
    assert read(channel) == b"forth"
    channel.close()
    good("direct-tcpip")
    channel = ssh.channel_new()
    try:
        channel.open_forward("127.0.0.1", 1, "127.0.0.1", 1)
        raise AssertionError("a port where nobody listens")
    except Exception as refused:
        assert not isinstance(refused, AssertionError), refused
    good("refusal")

    # Which port the container would choose this binding does not tell.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ssh.listen_forward("127.0.0.1", port, port)
    caller = socket.create_connection(("127.0.0.1", port), DEADLINE)
    called = ssh.accept_forward(DEADLINE * 1000, port)
    caller.sendall(b"knock")
    assert called.read(5)[1] == b"knock"
    called.write(b"who")
    called.send_eof()
    called.close()
    assert caller.recv(3) == b"who" and caller.recv(1) == b""
    ssh.cancel_forward("127.0.0.1", port)
    good("remote forward")
    ssh.disconnect()


{"libssh": with_libssh, "libssh2": with_libssh2}[LIBRARY]()
