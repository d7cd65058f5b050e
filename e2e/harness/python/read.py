"""Reads YAML as PyYAML does: texts in, the documents of each or why not out."""

import json
import sys

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(text):
    try:
        return {"documents": list(yaml.load_all(text, Loader=LOADER))}
    except yaml.YAMLError as error:
        return {"error": str(error)}


answer = [read(text) for text in json.load(sys.stdin)]
# Kubernetes reads a date as a string.
json.dump(answer, sys.stdout, default=str)
