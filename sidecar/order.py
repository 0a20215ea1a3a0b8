#!/usr/bin/env python3
"""Writes order.ld: which functions every sidecar runs, so that the linker puts them side by side.

    order.py SIDECAR COUNTS...      SIDECAR as cargo built it; COUNTS what callgrind wrote while it ran, the least first

The kernel maps code in pieces of 64 KiB around what is run. What is run is two fifths of the code, and lay all over it, so
nearly all of it was in memory. To count, have `cargo measure T4 T1r T7 --quick --peers portunus --sidecar FILE` run a FILE
that says

    exec valgrind -q --tool=callgrind --demangle=no --dump-every-bb=10000000 --callgrind-out-file=DIR/%p SIDECAR "$@"

and start it once by hand, with no mesh and no call.

A function is named without the hashes that compilers and locks change. Where most of a module is run, the module is named
instead; of the C library, members of its archive. A name that is nobody's any more does no harm; a function that is missing
lies with the rest, which costs memory.
"""

import collections
import re
import subprocess
import sys
from pathlib import Path

MOST = 0.75  # of a module's bytes, that are run, for all of it to be named
# glibc takes what the CPU at hand is best at, and valgrind's is an old one.
NEWER = ["*libc.a:mem*-evex*.o(.text .text.*)", "*libc.a:str*-evex*.o(.text .text.*)"]


def main(program, *counts):
    run, members = run_in(counts), members_of_libc()
    total, hot, whole = collections.Counter(), collections.Counter(), {}
    for symbol, size in functions(program):
        whole[symbol] = prefixes(symbol)
        for prefix in whole[symbol]:
            total[prefix] += size
            hot[prefix] += size if symbol in run else 0
    first = {}
    for symbol, turn in run.items():
        names = list(members[symbol])
        if symbol in whole and not names:
            # Never a whole crate: what it has that is new would come along.
            modules = [it for it in whole[symbol][1:-1] if hot[it] > MOST * total[it]]
            names.append(pattern(symbol, (modules or whole[symbol][-1:])[0]))
        for name in names:
            first[name] = min(turn, first.get(name, turn))
    inorder = sorted(first, key=lambda it: (first[it], it)) + NEWER
    lines = "".join(f"    {it}\n" for it in inorder)
    where = Path(__file__).with_name("order.ld")
    head = "/* What every sidecar runs, side by side. order.py writes this. */\n"
    where.write_text(f"{head}SECTIONS {{\n  .text.run : {{\n{lines}  }}\n}}\nINSERT BEFORE .text;\n")
    print(f"{len(inorder)} names in {where}")


def pattern(symbol, prefix):
    """What the linker finds a function's section by. What is marked as cold has a section of another kind."""
    if symbol.startswith("_ZN"):
        return f"*(.text.*{prefix}*)"
    return f"*(.text.{prefix} .text.unlikely.{prefix})"


def prefixes(symbol):
    """A mangled name as prefixes, each of which means more than the one before; none has a hash."""
    legacy = re.fullmatch(r"_ZN(.*?)(17h[0-9a-f]{16})(E.*)?", symbol)
    if not legacy:
        # Rust's later mangling: the disambiguators of crates change with the compiler.
        return [re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", symbol)]
    path, found, at = legacy[1], [], 0
    while length := re.match(r"\d+", path[at:]):
        at += len(length[0]) + int(length[0])
        found.append("_ZN" + path[:at])
    return found or ["_ZN" + path]


def functions(program):
    """Each function once, and its size in bytes."""
    seen = set()
    for line in said("nm", "-S", "--defined-only", program):
        found = re.fullmatch(r"([0-9a-f]+) ([0-9a-f]+) [tTwW] (\S+)", line)
        if found and found[1] not in seen:
            seen.add(found[1])
            yield found[3], int(found[2], 16)


def run_in(counts):
    """Each function that is run, and in which file first."""
    first = {}
    for turn, file in enumerate(counts):
        for line in Path(file).read_text(errors="replace").splitlines():
            found = re.match(r"c?fn=\(\d+\) ([^']+)", line)
            if found:
                first.setdefault(found[1], turn)
    return first


def members_of_libc():
    """Which members of the archive have a function."""
    members = collections.defaultdict(set)
    (libc,) = said("cc", "-print-file-name=libc.a")
    for line in said("nm", "-A", "--defined-only", libc):
        found = re.fullmatch(r".*libc\.a:(\S+?):\S+ [tTwWiI] (\S+)", line)
        if found:
            members[found[2]].add(f"*libc.a:{found[1]}(.text .text.*)")
    return members


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    main(*sys.argv[1:])
