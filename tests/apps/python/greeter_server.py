"""The greeter, as an application would write it with grpcio: it knows nothing of a mesh."""

import argparse
import asyncio
import json
import signal
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from helloworld import greeter_pb2, greeter_pb2_grpc

SLOWER = 10
SERVICES = ["", "helloworld.Greeter"]


class Greeter(greeter_pb2_grpc.GreeterServicer):
    def __init__(self, name, work):
        self.name = name
        self.work = work
        self.factor = 1

    async def SayHello(self, request, context):
        await asyncio.sleep(self.work * self.factor)
        return self.reply(request)

    async def SayHelloStreamReply(self, request, context):
        # Until the caller leaves.
        while True:
            yield self.reply(request)
            await asyncio.sleep(0.1)

    def reply(self, request):
        return greeter_pb2.HelloReply(message=f"Hello {request.name}, here is {self.name}")


class Health:
    """Says that everything serves, or that nothing does; and writes when that has changed."""

    def __init__(self):
        self.servicer = HealthServicer()
        self.serves = False

    async def turn(self):
        self.serves = not self.serves
        status = "SERVING" if self.serves else "NOT_SERVING"
        for service in SERVICES:
            await self.servicer.set(service, health_pb2.HealthCheckResponse.ServingStatus.Value(status))
        print(json.dumps({"says": status, "at": time.time()}), flush=True)


class Refusing(health_pb2_grpc.HealthServicer):
    """Answers whoever asks with a status of another kind."""

    def __init__(self, code):
        self.code = next(status for status in grpc.StatusCode if status.value[0] == code)

    async def Check(self, request, context):
        await context.abort(self.code, "not without credentials")

    Watch = Check


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--work-ms", type=float, default=0)
    parser.add_argument("--no-health", action="store_true")
    parser.add_argument("--health-code", type=int)
    args = parser.parse_args()

    greeter = Greeter(args.name, args.work_ms / 1000)
    server = grpc.aio.server()
    greeter_pb2_grpc.add_GreeterServicer_to_server(greeter, server)
    health = Health()
    await health.turn()
    if not args.no_health:
        servicer = health.servicer if args.health_code is None else Refusing(args.health_code)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"[::]:{args.port}")
    await server.start()

    loop = asyncio.get_running_loop()
    stop, turns = asyncio.Event(), set()
    loop.add_signal_handler(signal.SIGUSR1, setattr, greeter, "factor", SLOWER)
    loop.add_signal_handler(signal.SIGUSR2, setattr, greeter, "factor", 1)
    loop.add_signal_handler(signal.SIGHUP, lambda: turns.add(asyncio.create_task(health.turn())))
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(grace=10)


asyncio.run(main())
