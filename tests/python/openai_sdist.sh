#!/usr/bin/env sh
# Runs the openai package's own tests of chat completions, completions, models and embeddings
# against the server at $REALIGN_BASE_URL.
#
# usage: openai_sdist.sh PYTHON DIRECTORY     (DIRECTORY keeps the package's source)
#
# They are written for a server that answers with examples of OpenAI's specification. Left out:
# - `delete` and `with_all_params`: fields and routes of stored completions, audio and prediction;
# - `retrieve`, `update` and `list` of chat completions: none is stored;
# - strict tests of embeddings: the client asks for base64, which its own strict mode refuses;
# - aiohttp: another HTTP client, which the package does not install.
set -eu
python=$1
directory=$2
version=3.54.0
mkdir -p "$directory"
cd "$directory"
if [ ! -d "openai-$version/tests" ]; then
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary openai \
        "openai==$version"
    tar xzf "openai-$version.tar.gz"
fi
cd "openai-$version"
# The installed package is what is tested, not the source beside the tests.
rm -rf src
for file in chat/test_completions test_completions test_models test_embeddings; do
    sed -i -E "s/\"(gpt|text-embedding)-[a-z0-9.-]+\"/\"$REALIGN_MODEL\"/" "tests/api_resources/$file.py"
done
left_out='delete or with_all_params or aiohttp or (Embeddings and strict)'
stored='chat and (retrieve or update or list)'
TEST_API_BASE_URL=$REALIGN_BASE_URL exec "$python" -m pytest -q -p no:cacheprovider -o addopts= \
    tests/api_resources/chat/test_completions.py tests/api_resources/test_completions.py \
    tests/api_resources/test_models.py tests/api_resources/test_embeddings.py \
    -k "not ($left_out) and not ($stored)" --tb=short
