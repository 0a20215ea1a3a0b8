"""The client of gRPC's interoperability tests, with grpcio: runs the cases it is told, one line for each.

grpcio does not show whether a message came compressed: the cases of compression look at what it says, and the tonic
peer at the other end looks at the flag.
"""

import argparse
import sys
import threading
import traceback

import grpc

from interop import messages_pb2, test_pb2_grpc

INITIAL = ("x-grpc-test-echo-initial", "test_initial_metadata_value")
TRAILING = ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab")
REQUEST, RESPONSE = 271828, 314159
SENT, ASKED = (27182, 8, 1828, 45904), (31415, 9, 2653, 58979)
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
TRUE, FALSE = messages_pb2.BoolValue(value=True), messages_pb2.BoolValue(value=False)
SOAK = 20


def payload(size):
    return messages_pb2.Payload(body=bytes(size))


def simple(**more):
    return messages_pb2.SimpleRequest(response_size=RESPONSE, payload=payload(REQUEST), **more)


def ask_for(size, sent=0, interval_us=0, **more):
    parameters = [messages_pb2.ResponseParameters(size=size, interval_us=interval_us)]
    return messages_pb2.StreamingOutputCallRequest(response_parameters=parameters, payload=payload(sent), **more)


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def ends_with(code, call, message=None):
    """The call fails with this code, and with this message where one is given."""
    try:
        result = call()
        if hasattr(result, "__next__"):
            list(result)
    except grpc.RpcError as error:
        equal(error.code(), code)
        if message is not None:
            equal(error.details(), message)
    else:
        raise AssertionError(f"it succeeded, where {code} was expected")


class Requests:
    """A stream of requests that the case feeds as it goes."""

    def __init__(self):
        self.changed = threading.Condition()
        self.waiting = []
        self.closed = False

    def send(self, request):
        with self.changed:
            self.waiting.append(request)
            self.changed.notify()

    def close(self):
        with self.changed:
            self.closed = True
            self.changed.notify()

    def __iter__(self):
        return self

    def __next__(self):
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.closed)
            if self.waiting:
                return self.waiting.pop(0)
            raise StopIteration


def empty_unary(stub, _):
    equal(stub.EmptyCall(messages_pb2.Empty()), messages_pb2.Empty())


def large_unary(stub, _):
    equal(stub.UnaryCall(simple()).payload.body, bytes(RESPONSE))


def client_streaming(stub, _):
    requests = (messages_pb2.StreamingInputCallRequest(payload=payload(size)) for size in SENT)
    equal(stub.StreamingInputCall(requests).aggregated_payload_size, sum(SENT))


def server_streaming(stub, _):
    parameters = [messages_pb2.ResponseParameters(size=size) for size in ASKED]
    responses = stub.StreamingOutputCall(messages_pb2.StreamingOutputCallRequest(response_parameters=parameters))
    equal([len(response.payload.body) for response in responses], list(ASKED))


def ping_pong(stub, _):
    requests = Requests()
    responses = stub.FullDuplexCall(requests)
    for sent, asked in zip(SENT, ASKED):
        requests.send(ask_for(asked, sent))
        equal(next(responses).payload.body, bytes(asked))
    requests.close()
    equal(list(responses), [])
    equal(responses.code(), grpc.StatusCode.OK)


def empty_stream(stub, _):
    equal(list(stub.FullDuplexCall(iter(()))), [])


def custom_metadata(stub, _):
    def check(call):
        initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
        equal(initial.get(INITIAL[0]), INITIAL[1])
        equal(trailing.get(TRAILING[0]), TRAILING[1])

    _, call = stub.UnaryCall.with_call(simple(), metadata=(INITIAL, TRAILING))
    check(call)
    call = stub.FullDuplexCall(iter([ask_for(RESPONSE, REQUEST)]), metadata=(INITIAL, TRAILING))
    equal([len(response.payload.body) for response in call], [RESPONSE])
    check(call)


def status_code_and_message(stub, _):
    status = messages_pb2.EchoStatus(code=2, message="test status message")
    unary = messages_pb2.SimpleRequest(response_status=status)
    stream = messages_pb2.StreamingOutputCallRequest(response_status=status)
    ends_with(grpc.StatusCode.UNKNOWN, lambda: stub.UnaryCall(unary), status.message)
    ends_with(grpc.StatusCode.UNKNOWN, lambda: stub.FullDuplexCall(iter([stream])), status.message)


def special_status_message(stub, _):
    status = messages_pb2.EchoStatus(code=2, message=SPECIAL)
    ends_with(
        grpc.StatusCode.UNKNOWN, lambda: stub.UnaryCall(messages_pb2.SimpleRequest(response_status=status)), SPECIAL
    )


def unimplemented_method(stub, _):
    ends_with(grpc.StatusCode.UNIMPLEMENTED, lambda: stub.UnimplementedCall(messages_pb2.Empty()))


def unimplemented_service(_, channel):
    stub = test_pb2_grpc.UnimplementedServiceStub(channel)
    ends_with(grpc.StatusCode.UNIMPLEMENTED, lambda: stub.UnimplementedCall(messages_pb2.Empty()))


def cancel_after_begin(stub, _):
    call = stub.StreamingInputCall.future(Requests())
    call.cancel()
    equal(call.code(), grpc.StatusCode.CANCELLED)


def cancel_after_first_response(stub, _):
    requests = Requests()
    call = stub.FullDuplexCall(requests)
    requests.send(ask_for(ASKED[0], SENT[0]))
    next(call)
    call.cancel()
    equal(call.code(), grpc.StatusCode.CANCELLED)


def timeout_on_sleeping_server(stub, _):
    requests = Requests()
    requests.send(ask_for(ASKED[0], SENT[0], interval_us=2_000_000))
    try:
        list(stub.FullDuplexCall(requests, timeout=0.05))
        raise AssertionError("it succeeded")
    except grpc.RpcError as error:
        # grpc-go's server has a timer too: when it is first, it resets the stream, which grpcio calls cancelled.
        if not (error.code() == grpc.StatusCode.CANCELLED and "RST_STREAM with error code 8" in error.details()):
            equal(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
    requests.close()


def rpc_soak(stub, _):
    for _ in range(SOAK):
        large_unary(stub, None)


def channel_soak(_, channel):
    for _ in range(SOAK):
        with open_channel(channel.target) as own:
            large_unary(test_pb2_grpc.TestServiceStub(own), None)


def client_compressed_unary(stub, _):
    body = stub.UnaryCall(simple(expect_compressed=TRUE), compression=grpc.Compression.Gzip).payload.body
    equal(body, bytes(RESPONSE))
    equal(stub.UnaryCall(simple(expect_compressed=FALSE)).payload.body, bytes(RESPONSE))


def server_compressed_unary(stub, _):
    for compressed in (TRUE, FALSE):
        equal(stub.UnaryCall(simple(response_compressed=compressed)).payload.body, bytes(RESPONSE))


def client_compressed_streaming(stub, _):
    # grpcio compresses all messages of a call or none.
    sizes = (27182, 45904)
    requests = (
        messages_pb2.StreamingInputCallRequest(payload=payload(size), expect_compressed=TRUE) for size in sizes
    )
    response = stub.StreamingInputCall(requests, compression=grpc.Compression.Gzip)
    equal(response.aggregated_payload_size, sum(sizes))


def server_compressed_streaming(stub, _):
    parameters = [
        messages_pb2.ResponseParameters(size=31415, compressed=TRUE),
        messages_pb2.ResponseParameters(size=92653, compressed=FALSE),
    ]
    responses = stub.StreamingOutputCall(messages_pb2.StreamingOutputCallRequest(response_parameters=parameters))
    equal([len(response.payload.body) for response in responses], [31415, 92653])


def open_channel(target):
    # Each channel connects anew: grpcio would share the connections of equal ones.
    channel = grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
    channel.target = target
    return channel


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("cases", nargs="+")
    args = parser.parse_args()

    failed = False
    with open_channel(args.target) as channel:
        stub = test_pb2_grpc.TestServiceStub(channel)
        for case in args.cases:
            try:
                globals()[case](stub, channel)
                print(f"passed {case}", flush=True)
            except Exception:
                failed = True
                print(f"FAILED {case}:\n{traceback.format_exc()}", flush=True)
    sys.exit(failed)


main()
