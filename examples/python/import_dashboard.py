#!/usr/bin/env python3
"""Import realign's dashboard into a Grafana that runs already.

  GRAFANA_TOKEN=… examples/python/import_dashboard.py https://grafana.example.org

The token belongs to a service account with the role Editor. The dashboard asks for a Prometheus data source; docs/operating.md says
what Prometheus has to scrape. Importing it again replaces it. Only the Python standard library is needed.
"""
import json
import os
import pathlib
import sys
import urllib.error
import urllib.request

DASHBOARD = pathlib.Path(__file__).resolve().parents[2] / "deploy/grafana/realign.json"


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    token = os.environ.get("GRAFANA_TOKEN") or sys.exit("set GRAFANA_TOKEN to the token of a service account with the role Editor")
    dashboard = json.loads(DASHBOARD.read_text())
    body = json.dumps({"dashboard": {**dashboard, "id": None}, "overwrite": True, "message": "realign"}).encode()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    request = urllib.request.Request(sys.argv[1].rstrip("/") + "/api/dashboards/db", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            print(f"imported: {sys.argv[1].rstrip('/')}{json.load(answer)['url']}")
    except urllib.error.HTTPError as error:
        sys.exit(f"Grafana refused it with status {error.code}: {error.read(500).decode('utf-8', 'replace')}")
    except OSError as error:
        sys.exit(f"{sys.argv[1]} does not answer: {error}")


if __name__ == "__main__":
    main()
