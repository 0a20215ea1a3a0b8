#!/usr/bin/env python3
"""Records conversations of an independent HPACK (PyPI `hpack`) as vectors for our decoder.

    pip install hpack==4.2.0 && ./record.py > recorded.json

Each story is one encoder and its blocks, in hexadecimal, with what they mean. Some stories change the table's size on the
way, some use Huffman coding, some send fields that must never be indexed. The same seed gives the same file.
"""

import json
import random

from hpack import Encoder
from hpack.struct import HeaderTuple, NeverIndexedHeaderTuple

SEED = 7541
NAMES = ["content-type", "user-agent", "te", "x-tenant", "traceparent", "grpc-timeout", "x-request-id", "cookie", "via", "x-b3-traceid"]
SECRETS = ["authorization", "x-api-key", "cookie"]


def value(rng):
    alphabet = rng.choice(["0123456789abcdef-", "abcdefghijklmnopqrstuvwxyz/.", "".join(map(chr, range(33, 127)))])
    return "".join(rng.choice(alphabet) for _ in range(rng.choice([0, 1, 5, 20, 60, 120])))


def request(rng, values):
    fields = [
        HeaderTuple(":method", rng.choice(["POST", "GET", "PUT"])),
        HeaderTuple(":scheme", rng.choice(["http", "https"])),
        HeaderTuple(":path", f"/shop.Cart/{rng.choice(['Add', 'Remove', 'List', 'Watch'])}"),
        HeaderTuple(":authority", rng.choice(["cart:50051", "cart.shop.svc.cluster.local"])),
    ]
    for name in rng.sample(NAMES, rng.randrange(len(NAMES))):
        fields.append(HeaderTuple(name, rng.choice(values) if rng.random() < 0.7 else value(rng)))
    if rng.random() < 0.5:
        fields.append(NeverIndexedHeaderTuple(rng.choice(SECRETS), "s" + value(rng)))
    return fields


def story(seed):
    rng = random.Random(seed)
    encoder = Encoder()
    values = [value(rng) for _ in range(8)]
    huffman = rng.random() < 0.7
    allowed = 4096
    blocks = []
    for _ in range(10):
        block = {}
        if rng.random() < 0.2:
            # The least comes first: it is what the next block must tell (RFC 7541, 4.2).
            # (The package forgets a change that is set twice, hence the set.)
            sizes = sorted({rng.choice([0, 64, 150, 500, 4096, 8192]) for _ in range(rng.choice([1, 2]))})
            for allowed in sizes:
                encoder.header_table_size = allowed
            block["allowed"] = sizes
        fields = request(rng, values)
        block["wire"] = encoder.encode(fields, huffman=huffman).hex()
        block["fields"] = [[n, v, isinstance(f, NeverIndexedHeaderTuple)] for f in fields for n, v in [f]]
        blocks.append(block)
    return blocks


def main():
    stories = [story(SEED + number) for number in range(12)]
    print("[")
    print(",\n".join(json.dumps(blocks, separators=(",", ":")) for blocks in stories))
    print("]")


if __name__ == "__main__":
    main()
