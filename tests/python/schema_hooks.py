"""Keeps most generated requests meaningful, so that they get past the first check, and short."""

import os

import schemathesis

# Below every vocabulary that the tests serve.
VOCABULARY = 256


# Their texts must be schemas, expressions and grammars, and a request can have one of them.
CONSTRAINTS = (
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "grammar", "json_schema", "regex",
)


def ids(value):
    if isinstance(value, list):
        return [ids(item) for item in value]
    return value % VOCABULARY if isinstance(value, int) and not isinstance(value, bool) else value


def repair(body):
    """Combinations that no schema can forbid and every server refuses."""
    body["model"] = os.environ["REALIGN_MODEL"]
    if body.get("stream") is not True:
        body.pop("stream_options", None)
    options = body.get("stream_options")
    if isinstance(options, dict) and not options.get("include_usage"):
        options.pop("continuous_usage_stats", None)
    if body.get("stream"):
        body.pop("prompt_logprobs", None)
    if body.get("logprobs") is not True:
        body.pop("top_logprobs", None)
    if body.get("echo"):
        body.pop("logprobs", None)
    body.pop("best_of", None)
    for name in CONSTRAINTS:
        body.pop(name, None)
    body["stop_token_ids"] = ids(body.get("stop_token_ids") or [])
    body.pop("min_tokens", None)
    if body.get("truncate_prompt_tokens") == 0 or body.get("echo"):
        body.pop("truncate_prompt_tokens", None)
    if not body.get("tools") or isinstance(body.get("tool_choice"), dict):
        body.pop("tool_choice", None)
    for name in ("prompt", "input", "tokens"):
        if name in body:
            body[name] = ids(body[name])
    bias = body.get("logit_bias")
    if isinstance(bias, dict) and all(key.isdecimal() for key in bias):
        body["logit_bias"] = {str(int(key) % VOCABULARY): value for key, value in bias.items()}


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    # One in four stays as it was generated; so do models that are not text.
    if isinstance(body.get("model"), str) and len(str(body)) % 4:
        repair(body)
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(body.get(name), int) and not isinstance(body[name], bool):
            body[name] = min(body[name], 8)
    body.setdefault("max_tokens", 4)
    # Routes refuse fields that they do not know.
    if context.operation.path.endswith("/responses"):
        body.setdefault("max_output_tokens", 4)
        # The name in chat completions means the same.
        body.pop("max_tokens", None)
    return body
