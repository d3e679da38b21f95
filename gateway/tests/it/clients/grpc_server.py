"""A gRPC server without generated code: messages are bytes. Prints its address first."""

import json
import sys
import threading
import time
from concurrent import futures

import grpc

ended = {"cancelled": 0, "deadline": 0}
lock = threading.Condition()


def echo(request, context):
    return request


def big(request, context):
    return b"b" * int(request)


def metadata(request, context):
    sent = {
        key: value.hex() if isinstance(value, bytes) else value
        for key, value in context.invocation_metadata()
    }
    context.send_initial_metadata((("x-initial", "first"), ("x-raw-bin", b"\x00\xff\x80")))
    context.set_trailing_metadata((("x-trailing", "last"), ("x-raw-bin", b"\x01\xfe")))
    return json.dumps(sent).encode()


def status(request, context):
    code, _, details = request.decode().partition(" ")
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(getattr(grpc.StatusCode, code), details)


def wait(request, context):
    """Never answers; notes how it was ended."""
    over = threading.Event()

    def note():
        with lock:
            ended["cancelled"] += 1
            lock.notify_all()
        over.set()

    context.add_callback(note)
    over.wait(60)
    return b"too late"


def wait_stream(request, context):
    """One message, then silence until it is ended."""
    yield b"begun"
    wait(request, context)


def ended_calls(request, context):
    """Answers once as many calls as asked for were ended by their client."""
    deadline = time.monotonic() + 20
    with lock:
        while ended["cancelled"] < int(request) and time.monotonic() < deadline:
            lock.wait(1)
        return str(ended["cancelled"]).encode()


def count(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def numbers(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def numbers_then_fail(request, context):
    for number in range(int(request)):
        yield str(number).encode()
    context.abort(grpc.StatusCode.DATA_LOSS, "the rest is gone")


def chat(requests, context):
    yield b"hello"
    for request in requests:
        yield request.upper()


def main():
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=40),
        options=[
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.max_send_message_length", 64 << 20),
        ],
    )
    unary = grpc.unary_unary_rpc_method_handler
    stream = grpc.unary_stream_rpc_method_handler
    methods = {
        "Echo": unary(echo),
        "Big": unary(big),
        "Metadata": unary(metadata),
        "Status": unary(status),
        "Wait": unary(wait),
        "EndedCalls": unary(ended_calls),
        "WaitStream": stream(wait_stream),
        "Numbers": stream(numbers),
        "NumbersThenFail": stream(numbers_then_fail),
        "Count": grpc.stream_unary_rpc_method_handler(count),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    service = grpc.method_handlers_generic_handler("test.Everything", methods)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port(f"{sys.argv[1]}:0")
    server.start()
    print(f"{sys.argv[1]}:{port}", flush=True)
    server.wait_for_termination()


main()
