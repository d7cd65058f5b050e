"""Holds documents against Kubernetes' schemas, with nothing in them that a
schema lacks: a JSON list of documents and the oldest version for each in, and
for each what is wrong with it, by version, out."""

import functools
import json
import sys

from kubernetes_validate import utils

# Read once instead of once per document.
utils.schema_contents = functools.cache(utils.schema_contents)
utils.all_versions = functools.cache(utils.all_versions)


def versions():
    return sorted({utils.major_minor(version) for version in utils.all_versions()}, key=utils.Version)


def wrong(document, oldest):
    for version in versions():
        if utils.Version(version) < utils.Version(oldest):
            continue
        try:
            utils.validate(document, version, strict=True)
        except utils.ValidationError as error:
            place = ".".join(str(part) for part in error.path)
            yield f"{version}: {place}: {error.message}"
        except utils.SchemaNotFoundError as error:
            yield error.message


def main():
    answer = {
        "versions": versions(),
        "wrong": [list(wrong(document, oldest)) for document, oldest in json.load(sys.stdin)],
    }
    json.dump(answer, sys.stdout)


main()
