"""litellm: our server behind five of its providers, as gateways use it."""

import litellm
from pydantic import BaseModel, Field

from checks import HELLO, MODEL, ROOT, URL, WEATHER, expect, is_weather, refused, report

litellm.suppress_debug_info = True
ASK = dict(temperature=0, max_tokens=60, num_retries=0)
OPENAI = dict(model=f"openai/{MODEL}", api_base=URL, api_key="none")
QUESTION = [{"role": "user", "content": "How is the weather in Oslo for 2 days?"}]
PROVIDERS = [
    OPENAI,
    dict(model=f"hosted_vllm/{MODEL}", api_base=URL, api_key="none"),
    dict(model=f"llamafile/{MODEL}", api_base=URL, api_key="none"),
    dict(model=f"ollama_chat/{MODEL}", api_base=ROOT),
    dict(model=f"anthropic/{MODEL}", api_base=ROOT, api_key="none"),
]


class Visit(BaseModel):
    city: str = Field(pattern="^(Oslo|Rome|Lima)$")
    days: int = Field(ge=1, le=7)


def every_provider_answers():
    for provider in PROVIDERS:
        answer = litellm.completion(messages=HELLO, **provider, **ASK)
        expect(answer.choices[0].message.content, f"{provider}: {answer}")
        expect(answer.usage.total_tokens > 0, f"{provider}: no usage")


def every_provider_streams():
    for provider in PROVIDERS:
        whole = litellm.completion(messages=HELLO, **provider, **ASK).choices[0].message.content
        parts = list(litellm.completion(messages=HELLO, stream=True, **provider, **ASK))
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        expect(text == whole, f"{provider}: {text!r} != {whole!r}")
        rebuilt = litellm.stream_chunk_builder(parts, messages=HELLO)
        expect(rebuilt.choices[0].message.content == whole, f"{provider}: {rebuilt}")


def every_provider_calls_tools():
    # Ollama's format has no `tool_choice`.
    for provider in PROVIDERS[:3] + PROVIDERS[4:]:
        messages = list(QUESTION)
        both = dict(tools=[WEATHER], **provider, **ASK)
        answer = litellm.completion(messages=messages, tool_choice="required", **both)
        message = answer.choices[0].message
        expect(message.tool_calls, f"{provider}: {answer}")
        messages.append(message.model_dump())
        for call in message.tool_calls:
            is_weather(call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "12 degrees"})
        expect(litellm.completion(messages=messages, **both).choices, f"{provider}: its own call")


def tools_streamed():
    asked = dict(tools=[WEATHER], tool_choice="required", stream=True, **OPENAI, **ASK)
    parts = list(litellm.completion(messages=QUESTION, **asked))
    rebuilt = litellm.stream_chunk_builder(parts, messages=QUESTION)
    is_weather(rebuilt.choices[0].message.tool_calls[0].function.arguments)


def structured_answers():
    for provider in PROVIDERS:
        answer = litellm.completion(messages=QUESTION, response_format=Visit, **provider, **ASK)
        message = answer.choices[0].message
        text = message.content or message.tool_calls[0].function.arguments
        expect(Visit.model_validate_json(text), f"{provider}: {text}")
    asked = dict(guided_choice=["yes", "no"], **PROVIDERS[1], **ASK)
    chosen = litellm.completion(messages=HELLO, **asked).choices[0].message.content
    expect(chosen in ("yes", "no"), chosen)


def other_routes():
    vectors = litellm.embedding(input=["a", "b"], **OPENAI).data
    expect(len(vectors) == 2, f"{vectors}")
    plain = OPENAI | dict(model=f"text-completion-openai/{MODEL}")
    text = litellm.text_completion(prompt="The sky is", **plain, **ASK)
    expect(text.choices[0].text, f"{text}")
    answer = litellm.responses(input="Say hello.", max_output_tokens=20, temperature=0, **OPENAI)
    expect(answer.output[0].content[0].text, f"{answer}")
    both = dict(messages=HELLO, max_tokens=20, **OPENAI)
    answer = litellm.completion(drop_params=True, reasoning_effort="low", **both)
    expect(answer.usage.total_tokens > 0, f"{answer}")


def errors_are_mapped():
    wrong = OPENAI | dict(model="openai/gpt-none")
    refused(litellm.NotFoundError, lambda: litellm.completion(messages=HELLO, **wrong, **ASK), "gpt-none")
    hot = ASK | dict(temperature=9)
    refused(litellm.BadRequestError, lambda: litellm.completion(messages=HELLO, **OPENAI, **hot), "temperature")
    long = [{"role": "user", "content": "word " * 4000}]
    kind = litellm.ContextWindowExceededError
    refused(kind, lambda: litellm.completion(messages=long, **OPENAI, **ASK))
    endless = dict(max_tokens=1500, ignore_eos=True, timeout=0.3, num_retries=0, max_retries=0)
    refused(litellm.Timeout, lambda: litellm.completion(messages=HELLO, **OPENAI, **endless))


async def asynchronous():
    answer = await litellm.acompletion(messages=HELLO, **OPENAI, **ASK)
    stream = await litellm.acompletion(messages=HELLO, stream=True, **OPENAI, **ASK)
    text = "".join([part.choices[0].delta.content or "" async for part in stream])
    expect(text == answer.choices[0].message.content, f"{text!r}")


report(
    [
        *(every_provider_answers, every_provider_streams, every_provider_calls_tools),
        *(tools_streamed, structured_answers, other_routes, errors_are_mapped, asynchronous),
    ]
)
