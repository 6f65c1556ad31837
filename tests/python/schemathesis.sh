#!/usr/bin/env sh
# Sends requests generated from /openapi.json to the server at $REALIGN_BASE_URL: no answer may be
# a 5xx, and every answer must have a documented status, type and form. $REALIGN_ADMIN_KEY opens the
# operators' routes; clients need no key.
#
# usage: schemathesis.sh PYTHON [EXAMPLES]     (EXAMPLES per route; 25 by default)
set -eu
hooks=$(cd "$(dirname "$0")" && pwd)/schema_hooks.py
st=$(dirname "$1")/st
checks=not_a_server_error,response_schema_conformance,status_code_conformance,content_type_conformance
# It keeps notes in the working directory.
kept=$(mktemp -d)
trap 'rm -rf "$kept"' EXIT
cd "$kept"
SCHEMATHESIS_HOOKS=$hooks "$st" run "${REALIGN_BASE_URL%/v1}/openapi.json" \
    --header "Authorization: Bearer $REALIGN_ADMIN_KEY" --checks "$checks" --max-examples "${2:-25}" --seed 1 --request-timeout 60 --no-color
