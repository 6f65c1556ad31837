#!/usr/bin/env python3
"""Checks a running server with the `openai` package.

usage: openai_client.py BASE_URL [MODEL]     (BASE_URL ends in /v1; the key is $OPENAI_API_KEY)

Exits 0 if every check holds, 1 with one line per failed check, 2 if the server cannot be reached.
"""

import os
import re
import sys

import openai

from openai_checks import PROMPT, expect, loose, refused
from openai_surface import SURFACE


def models(client, model):
    ids = [entry.id for entry in client.models.list()]
    expect(model in ids, f"{model} is not in the list {ids}")
    expect(f"{model}@base" in ids, f"{model}@base is not in the list {ids}")
    for name in (model, f"{model}@base"):
        got = client.models.retrieve(name).id
        expect(got == name, f"retrieving {name} gave {got}")


def counts(usage):
    """Token counts without the share that the prefix cache held: the second request finds more."""
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def chat_stream_equals_whole(client, model):
    asked = dict(model=model, messages=PROMPT, temperature=0, max_tokens=24)
    whole = client.chat.completions.create(**asked)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=options))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    expect(text == whole.choices[0].message.content, f"streamed {text!r}, whole {whole!r}")
    expect(choices[0].delta.role == "assistant", "the first chunk has no role")
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    expect(reasons == [whole.choices[0].finish_reason], f"finish reasons {reasons}")
    streamed, counted = counts(chunks[-1].usage), counts(whole.usage)
    expect(streamed == counted, f"usage {streamed}, whole {counted}")
    expect(len({chunk.id for chunk in chunks}) == 1, "chunks of one answer have several ids")


def completions(client, model):
    asked = dict(model=model, prompt=["The sky is", "Water is"], temperature=0, max_tokens=8)
    whole = client.completions.create(**asked)
    expect(len(whole.choices) == 2, f"2 prompts gave {len(whole.choices)} choices")
    texts = ["", ""]
    # Chunks have no finish reason, as OpenAI's own: the client's type insists on one.
    for chunk in loose(client).completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    expect(texts == [choice.text for choice in whole.choices], f"{texts} != {whole.choices}")


def seeds(client, model):
    def text(seed):
        answer = client.chat.completions.create(
            model=model, messages=PROMPT, temperature=1.0, seed=seed, max_tokens=24
        )
        return answer.choices[0].message.content

    first = text(7)
    expect(first == text(7), "the same seed gave two texts")
    expect(any(first != text(seed) for seed in (8, 9, 10)), "four seeds gave one text")


def logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=PROMPT, temperature=0, max_tokens=6, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    expect(content, "no log-probabilities")
    for entry in content:
        expect(entry.logprob <= 0, f"positive log-probability: {entry}")
        expect(len(entry.top_logprobs) == 2, f"not two alternatives: {entry}")
        expect(entry.token == entry.top_logprobs[0].token, f"greedy took another: {entry}")


def headers(client, model):
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=PROMPT, temperature=0, max_tokens=2
    )
    generation = raw.headers.get("x-realign-generation", "")
    expect(re.fullmatch("[0-9a-f]{12}", generation), f"x-realign-generation: {generation!r}")
    fingerprint = raw.parse().system_fingerprint
    expect(fingerprint.endswith(f"_{generation}"), f"{fingerprint} does not end in {generation}")
    expect(raw.headers.get("x-request-id"), "no x-request-id")
    pinned = client.chat.completions.create(
        model=f"{model}@{generation}", messages=PROMPT, temperature=0, max_tokens=2
    )
    expect(pinned.system_fingerprint == fingerprint, "pinning answered from another generation")


def errors(client, model):
    def chat(**fields):
        asked = dict(model=model, messages=PROMPT, max_tokens=2) | fields
        return lambda: client.chat.completions.create(**asked)

    refused(openai.NotFoundError, chat(model="no-such-model"), code="model_not_found", param="model")
    refused(openai.BadRequestError, chat(temperature=3), param="temperature")
    refused(openai.BadRequestError, chat(messages=[]), param="messages")
    refused(openai.BadRequestError, chat(n=100), param="n")
    refused(openai.BadRequestError, chat(logit_bias={"1": 101}), param="logit_bias")
    refused(openai.BadRequestError, chat(functions=[{"name": "f"}]), param="functions")
    chat(max_tokens=10**9)()  # lowered to what fits
    refused(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))


CHECKS = [models, chat_stream_equals_whole, completions, seeds, logprobs, headers, errors] + SURFACE


def main(arguments):
    if not 1 <= len(arguments) <= 2:
        print(__doc__, file=sys.stderr)
        return 2
    key = os.environ.get("OPENAI_API_KEY", "none")
    # Strict: an answer that does not fit the client's own types is an error.
    client = openai.OpenAI(
        base_url=arguments[0],
        api_key=key,
        max_retries=0,
        timeout=120,
        _strict_response_validation=True,
    )
    try:
        model = arguments[1] if len(arguments) == 2 else client.models.list().data[0].id
    except openai.OpenAIError as error:
        print(f"cannot list the models at {arguments[0]}: {error}", file=sys.stderr)
        return 2
    failed = 0
    for check in CHECKS:
        try:
            check(client, model)
            print(f"ok      {check.__name__}")
        except (AssertionError, openai.OpenAIError) as error:
            failed += 1
            print(f"FAILED  {check.__name__}: {error}")
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks hold for {model}, openai {openai.__version__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
