"""Reads a page of metrics with Prometheus's own client library, in both formats, and writes each sample of the first."""

import argparse
import json
import urllib.request

from prometheus_client import parser as text
from prometheus_client.openmetrics import parser as openmetrics


def page(url, accept):
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept})) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--url", required=True)
    url = arguments.parse_args().url

    kind, body = page(url, "text/plain;version=0.0.4")
    assert kind.startswith("text/plain"), kind
    families = list(text.text_string_to_metric_families(body))

    kind, body = page(url, "application/openmetrics-text;version=1.0.0")
    assert kind.startswith("application/openmetrics-text"), kind
    # Stricter: the order of samples, units, what may stand where, and the end.
    again = list(openmetrics.text_string_to_metric_families(body))
    assert {family.name for family in families} <= {family.name for family in again}, "families are missing"

    for family in families:
        assert family.documentation, f"{family.name} has no help"
        assert family.type != "unknown", f"{family.name} has no type"
        for sample in family.samples:
            print(json.dumps({"name": sample.name, "type": family.type, "labels": sample.labels, "value": sample.value}))


main()
