"""WebSockets over HTTP/2 (RFC 8441), by hand: HOST PORT CA."""

import os
import socket
import ssl
import sys

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2 import events
from h2.settings import SettingCodes
from wsproto import connection as ws
from wsproto import events as frames

HOST, PORT, CA = sys.argv[1:4]
TIME = 20


class Client:
    def __init__(self):
        context = ssl.create_default_context(cafile=CA)
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", int(PORT)), timeout=TIME)
        self.tls = context.wrap_socket(plain, server_hostname=HOST)
        assert self.tls.selected_alpn_protocol() == "h2"
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(8 << 20)
        self.flush()
        self.streams = {}
        self.greeted = False
        while not self.greeted:
            self.read()
        assert self.h2.remote_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1

    def flush(self):
        self.tls.sendall(self.h2.data_to_send())

    def read(self):
        data = self.tls.recv(65536)
        assert data, "the connection ended"
        for event in self.h2.receive_data(data):
            stream = self.streams.get(getattr(event, "stream_id", None))
            if stream is not None:
                stream.take(event)
            self.greeted |= isinstance(event, events.RemoteSettingsChanged)
            assert not isinstance(event, events.ConnectionTerminated), event
        self.flush()

    def connect(self, path, more=()):
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(
            number,
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "https"),
                (":path", path),
                (":authority", HOST),
                ("sec-websocket-version", "13"),
                ("origin", f"https://{HOST}"),
                *more,
            ],
        )
        self.flush()
        stream = self.streams[number] = Stream(self, number)
        while stream.status is None and not stream.over:
            self.read()
        return stream

    def get(self, path):
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(
            number,
            [
                (":method", "GET"),
                (":scheme", "https"),
                (":path", path),
                (":authority", HOST),
            ],
            end_stream=True,
        )
        self.flush()
        stream = self.streams[number] = Stream(self, number)
        while not stream.over:
            self.read()
        return stream


class Stream:
    def __init__(self, client, number):
        self.client, self.number = client, number
        self.status, self.fields = None, {}
        self.ws = ws.Connection(ws.ConnectionType.CLIENT)
        self.messages, self.parts = [], []
        self.closed = None
        self.over = None

    def take(self, event):
        if isinstance(event, events.ResponseReceived):
            self.fields = dict(event.headers)
            self.status = int(self.fields[":status"])
        elif isinstance(event, events.DataReceived):
            self.client.h2.acknowledge_received_data(
                event.flow_controlled_length, event.stream_id
            )
            if self.status != 200 or not event.data:
                return
            self.ws.receive_data(event.data)
            for frame in self.ws.events():
                if isinstance(frame, (frames.TextMessage, frames.BytesMessage)):
                    self.parts.append(frame.data)
                    if frame.message_finished:
                        self.messages.append(self.parts[0][:0].join(self.parts))
                        self.parts = []
                elif isinstance(frame, frames.CloseConnection):
                    self.closed = (frame.code, frame.reason)
                    if self.ws.state is ws.ConnectionState.REMOTE_CLOSING:
                        self.write(self.ws.send(frame.response()))
                elif isinstance(frame, frames.Ping):
                    self.write(self.ws.send(frame.response()))
        elif isinstance(event, events.StreamEnded):
            self.over = self.over or "ended"
        elif isinstance(event, events.StreamReset):
            self.over = f"reset {event.error_code}"

    def write(self, data, end=False):
        h2 = self.client.h2
        while data or end:
            room = min(h2.local_flow_control_window(self.number), h2.max_outbound_frame_size)
            if data and room == 0:
                self.client.flush()
                self.client.read()
                continue
            piece, data = data[:room], data[room:]
            h2.send_data(self.number, piece, end_stream=end and not data)
            if not data:
                break
        self.client.flush()

    def say(self, message):
        kind = frames.TextMessage if isinstance(message, str) else frames.BytesMessage
        self.write(self.ws.send(kind(message)))

    def hear(self):
        while not self.messages:
            assert not self.over, self.over
            self.client.read()
        return self.messages.pop(0)


client = Client()
one = client.connect("/chat", [("sec-websocket-protocol", "two")])
assert one.status == 200, one.fields
assert one.fields["sec-websocket-protocol"] == "two", one.fields
assert "sec-websocket-accept" not in one.fields, one.fields
assert "upgrade" not in one.fields and "connection" not in one.fields, one.fields
assert one.fields["x-request-id"]
for message in ("", "hello", "ü" * 10_000, b"", os.urandom(3 << 20)):
    one.say(message)
    assert one.hear() == message
one.say("headers?")
seen = one.hear().lower().split("\n")
for needed in ("connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13"):
    assert needed in seen, seen
assert sum(line.startswith("sec-websocket-key: ") for line in seen) == 1, seen
assert f"host: {HOST}" in seen and f"origin: https://{HOST}" in seen, seen
assert not any(":protocol" in line for line in seen), seen

# Others beside it on the same connection: a second socket and a plain request.
two = client.connect("/chat")
assert two.status == 200, two.fields
for turn in range(20):
    for socket_ in (one, two):
        socket_.say(f"turn {turn}")
    for socket_ in (two, one):
        assert socket_.hear() == f"turn {turn}"
plain = client.get("/chat")
assert plain.status == 426, plain.fields

# The server closes one; the other goes on.
one.say("close 4001")
while not one.over:
    client.read()
assert one.closed == (4001, "as you wish"), one.closed
assert one.over == "ended", one.over
two.say("still here")
assert two.hear() == "still here"

# The client closes the other.
two.write(two.ws.send(frames.CloseConnection(4002, "our wish")))
while not two.over:
    client.read()
assert two.closed == (4002, "our wish"), two.closed

# A reset by the client ends it at the server, and the connection goes on.
three = client.connect("/chat")
assert three.status == 200
client.h2.reset_stream(three.number)
client.flush()
four = client.connect("/chat")
four.say("and again")
assert four.hear() == "and again"
print("done")
