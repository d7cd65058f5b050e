"""Reads YAML as strict readers do: a JSON list of texts in, a list of the documents
of each out. A mapping with a key twice is an error."""

import json
import sys

import yaml


class Strict(yaml.CSafeLoader):
    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key.value!r}", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def documents(text):
    return [document for document in yaml.load_all(text, Strict) if document]


json.dump([documents(text) for text in json.load(sys.stdin)], sys.stdout)
