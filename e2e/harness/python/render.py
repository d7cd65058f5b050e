"""Renders a chart as Helm does: a JSON object of the chart's folder and a list
of releases in, a list of what became of each out."""

import json
import sys

import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError


def rendered(chart, release):
    try:
        files = chart.render(release["values"], name=release["name"], namespace=release["namespace"])
    except HelmError as error:
        return {"error": str(error)}
    notes = next((text for name, text in files.items() if name.endswith("/NOTES.txt")), "").lstrip()
    manifests = [text for name, text in sorted(files.items()) if not name.endswith("/NOTES.txt")]
    documents = [document for text in manifests for document in yaml.load_all(text, yaml.CSafeLoader)]
    return {"notes": notes, "documents": [document for document in documents if document]}


def main():
    question = json.load(sys.stdin)
    with Chart.load(question["chart"]) as chart:
        answer = {
            "lint": lint(question["chart"], strict=True)["messages"],
            "metadata": chart.metadata,
            "values": chart.values,
            "releases": [rendered(chart, release) for release in question["releases"]],
        }
    json.dump(answer, sys.stdout)


main()
