"""Judges certificates as py-spiffe does for somebody with this id, who has these roots of its trust domain and no others: for each
folder that is named, a line with `ok`, or why not."""

import pathlib
import sys

from spiffe import SpiffeId, X509Bundle, X509BundleSet, X509Svid

ours, roots, *folders = sys.argv[1:]
domain = SpiffeId(ours).trust_domain
bundles = X509BundleSet.of([X509Bundle.parse_raw(domain, pathlib.Path(roots).read_bytes())])

for folder in map(pathlib.Path, folders):
    chain, key = (folder / "chain.der").read_bytes(), (folder / "key.der").read_bytes()
    try:
        svid = X509Svid.parse_raw(chain, key)
        # Which roots are asked is a matter of the trust domain. The chain up to them it does not judge.
        if bundles.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain):
            print("ok", svid.spiffe_id)
        else:
            print("refused", "no roots are known of the trust domain", svid.spiffe_id.trust_domain)
    except Exception as refused:  # Whatever it says, it does not accept it.
        print("refused", type(refused).__name__, " ".join(str(refused).split()))
