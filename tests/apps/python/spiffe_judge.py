"""Judges certificates as py-spiffe does: for each folder that is named, a line with `ok`, or why not."""

import pathlib
import sys

from spiffe import X509Svid

for folder in map(pathlib.Path, sys.argv[1:]):
    chain, key = (folder / "chain.der").read_bytes(), (folder / "key.der").read_bytes()
    try:
        svid = X509Svid.parse_raw(chain, key)
        print("ok", svid.spiffe_id)
    except Exception as refused:  # Whatever it says, it does not accept it.
        print("refused", type(refused).__name__, " ".join(str(refused).split()))
