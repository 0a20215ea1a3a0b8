"""Calls a greeter at a steady rate on one channel, and writes a line of JSON for each call."""

import argparse
import asyncio
import json
import time

import grpc

from helloworld import greeter_pb2, greeter_pb2_grpc


async def call(stub, name):
    at, began = time.time(), time.perf_counter()
    answered, code, why = "", "OK", ""
    try:
        reply = await stub.SayHello(greeter_pb2.HelloRequest(name=name), timeout=20)
        answered = reply.message.rsplit(" ", 1)[-1]
    except grpc.aio.AioRpcError as error:
        code, why = error.code().name, error.details()
    ms = (time.perf_counter() - began) * 1000
    print(json.dumps({"at": at, "ms": round(ms, 3), "from": answered, "code": code, "why": why}), flush=True)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=10)
    args = parser.parse_args()

    calls = set()
    async with grpc.aio.insecure_channel(args.target) as channel:
        stub = greeter_pb2_grpc.GreeterStub(channel)
        began = time.monotonic()
        for number in range(args.rate * args.seconds):
            # An open loop: a slow answer delays no other call.
            await asyncio.sleep(max(0, began + number / args.rate - time.monotonic()))
            task = asyncio.create_task(call(stub, args.name))
            calls.add(task)
            task.add_done_callback(calls.discard)
        await asyncio.gather(*calls)


asyncio.run(main())
