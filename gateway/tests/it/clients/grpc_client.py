"""Every kind of gRPC call through the gateway: PORT CA SCENARIO."""

import json
import queue
import sys
import threading
import time

import grpc

PORT, CA, SCENARIO = sys.argv[1:4]
PREFIX = "/test.Everything/"


def channel(host="grpc.test"):
    with open(CA, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    return grpc.secure_channel(
        f"127.0.0.1:{PORT}",
        credentials,
        options=[
            ("grpc.ssl_target_name_override", host),
            ("grpc.default_authority", host),
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.max_send_message_length", 64 << 20),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
        ],
    )


def check(condition, *facts):
    if not condition:
        raise AssertionError(facts)


def fails(call, code):
    try:
        answer = call()
    except grpc.RpcError as error:
        check(error.code() == code, error.code(), error.details())
        return error
    raise AssertionError(f"no error but {answer!r:.100}")


def unary(c):
    echo = c.unary_unary(PREFIX + "Echo")
    for size in (0, 1, 100, 16_384, 16_385, 1 << 20):
        message = bytes(i % 251 for i in range(size))
        check(echo(message, timeout=20) == message, size)
    # Many at once on one connection.
    calls = [echo.future(str(n).encode(), timeout=20) for n in range(200)]
    check([call.result() for call in calls] == [str(n).encode() for n in range(200)])


def large(c):
    message = b"x" * (32 << 20)
    check(c.unary_unary(PREFIX + "Echo")(message, timeout=40) == message)
    check(len(c.unary_unary(PREFIX + "Big")(str(48 << 20).encode(), timeout=40)) == 48 << 20)


def streams(c):
    numbers = c.unary_stream(PREFIX + "Numbers")
    check([int(n) for n in numbers(b"1000", timeout=20)] == list(range(1000)))
    check(list(numbers(b"0", timeout=20)) == [])
    count = c.stream_unary(PREFIX + "Count")
    check(count((b"x" * 1000 for _ in range(1000)), timeout=20) == b"1000000")
    check(count(iter(()), timeout=20) == b"0")
    # Each message is answered before the next is sent.
    outgoing = queue.Queue()
    answers = c.stream_stream(PREFIX + "Chat")(iter(outgoing.get, None), timeout=20)
    check(next(answers) == b"hello")
    for n in range(50):
        outgoing.put(f"message {n}".encode())
        check(next(answers) == f"MESSAGE {n}".encode(), n)
    outgoing.put(None)
    check(list(answers) == [])
    check(answers.code() == grpc.StatusCode.OK)


def statuses(c):
    call = c.unary_unary(PREFIX + "Status")
    for code in grpc.StatusCode:
        if code == grpc.StatusCode.OK:
            continue
        details = f"{code.name}: ünïcödé, 100 %"
        error = fails(lambda: call(f"{code.name} {details}".encode(), timeout=20), code)
        check(error.details() == details, error.details())
        trailing = {item.key: item.value for item in error.trailing_metadata()}
        check(trailing["x-why"] == "because", trailing)
    fails(lambda: c.unary_unary(PREFIX + "Nothing")(b"", timeout=20), grpc.StatusCode.UNIMPLEMENTED)
    # What was said before the failure arrives, and so does the failure.
    got = []
    answers = c.unary_stream(PREFIX + "NumbersThenFail")(b"10", timeout=20)

    def drain():
        for answer in answers:
            got.append(int(answer))

    error = fails(drain, grpc.StatusCode.DATA_LOSS)
    check(got == list(range(10)), got)
    check(error.details() == "the rest is gone")


def metadata(c):
    call = c.unary_unary(PREFIX + "Metadata")
    answer, rpc = call.with_call(
        b"",
        timeout=20,
        metadata=(("x-ours", "a b"), ("x-twice", "1"), ("x-ours-bin", b"\x00\x01\xff")),
    )
    seen = json.loads(answer)
    check(seen["x-ours"] == "a b", seen)
    check(seen["x-ours-bin"] == "0001ff", seen)
    check("x-request-id" in seen and seen["x-forwarded-proto"] == "https", seen)
    check(seen["x-forwarded-for"] == "127.0.0.1", seen)
    initial = {item.key: item.value for item in rpc.initial_metadata()}
    trailing = {item.key: item.value for item in rpc.trailing_metadata()}
    check(initial["x-initial"] == "first" and initial["x-raw-bin"] == b"\x00\xff\x80", initial)
    check(initial["x-request-id"] == seen["x-request-id"], initial)
    check(trailing["x-trailing"] == "last" and trailing["x-raw-bin"] == b"\x01\xfe", trailing)


def ends(c):
    """Deadlines and cancellations end the call at the server too."""
    wait = c.unary_unary(PREFIX + "Wait")
    begun = time.monotonic()
    fails(lambda: wait(b"", timeout=0.7), grpc.StatusCode.DEADLINE_EXCEEDED)
    check(time.monotonic() - begun < 5)
    future = wait.future(b"", timeout=30)
    check(not future.done())
    stream = c.unary_stream(PREFIX + "WaitStream")(b"", timeout=30)
    check(next(stream) == b"begun")
    future.cancel()
    stream.cancel()
    fails(lambda: next(stream), grpc.StatusCode.CANCELLED)
    seen = c.unary_unary(PREFIX + "EndedCalls")(b"3", timeout=25)
    # The cancelled unary call may have ended before it was sent at all.
    check(int(seen) >= 2, seen)
    # The connection is none the worse.
    check(c.unary_unary(PREFIX + "Echo")(b"still", timeout=20) == b"still")


def nobody(_):
    """What the gateway says itself is a gRPC status, too."""
    for host, code in (
        ("refused.test", grpc.StatusCode.UNAVAILABLE),
        ("none.test", grpc.StatusCode.UNIMPLEMENTED),
        ("denied.test", grpc.StatusCode.PERMISSION_DENIED),
    ):
        with channel(host) as c:
            error = fails(lambda: c.unary_unary(PREFIX + "Echo")(b"", timeout=20), code)
            check("http" not in (error.details() or "").lower(), error.details())


with channel() as c:
    globals()[SCENARIO](c)
    print("done", SCENARIO)
