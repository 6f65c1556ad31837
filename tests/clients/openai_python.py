"""openai-python, old and new: what its users call, and what its helpers make of our streams."""

import json
from typing import Literal

import openai
from pydantic import BaseModel, Field

from checks import HELLO, MODEL, URL, WEATHER, expect, is_weather, refused, report

client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
chat = client.chat.completions
ASK = dict(model=MODEL, temperature=0, max_tokens=80)
QUESTION = [{"role": "user", "content": "How is the weather in Oslo for 2 days?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
# Responses have functions in a flat form.
FLAT = {"type": "function", **WEATHER["function"], "strict": True}


class Visit(BaseModel):
    city: Literal["Oslo", "Rome", "Lima"]
    days: int = Field(ge=1, le=7)


def whole_and_streamed():
    whole = chat.create(messages=HELLO, **ASK)
    parts = chat.create(messages=HELLO, stream=True, stream_options={"include_usage": True}, **ASK)
    chunks = list(parts)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    expect(text == whole.choices[0].message.content, f"{text!r} != {whole}")
    expect(chunks[-1].usage.total_tokens == whole.usage.total_tokens, "usage differs")


def helper_streams_text():
    with chat.stream(messages=HELLO, **ASK) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    expect("content.delta" in events and "content.done" in events, f"events {set(events)}")
    expect(final.choices[0].message.content, "no content")


def helper_streams_calls():
    for choice in ("required", NAMED):
        tools = [openai.pydantic_function_tool(Visit, name="get_weather")]
        with chat.stream(messages=QUESTION, tools=tools, tool_choice=choice, **ASK) as stream:
            done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
            final = stream.get_final_completion()
        calls = final.choices[0].message.tool_calls
        expect(calls and done, f"no call with {choice}")
        expect([e.arguments for e in done] == [c.function.arguments for c in calls], "fragments lost")
        for call in calls:
            is_weather(call.function.arguments)
            expect(isinstance(call.function.parsed_arguments, Visit), f"not parsed: {call}")
    expect(len(calls) == 1, f"a named function is called {len(calls)} times")


def choices_of_tools():
    for choice in ("none", "auto", "required", NAMED):
        answer = chat.create(messages=QUESTION, tools=[WEATHER], tool_choice=choice, **ASK)
        message = answer.choices[0].message
        for call in message.tool_calls or []:
            is_weather(call.function.arguments)
        if choice == "none":
            expect(not message.tool_calls, "a call in spite of `none`")
        elif choice != "auto":
            expect(message.tool_calls, f"no call with {choice}")


def a_round_of_tools():
    messages = list(QUESTION)
    for _ in range(2):
        answer = chat.create(messages=messages, tools=[WEATHER], tool_choice="required", **ASK)
        message = answer.choices[0].message
        messages.append(message)
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "12 degrees"})
    expect(chat.create(messages=messages, tools=[WEATHER], **ASK).choices, "no answer")


def parsed_answers():
    parse = chat.parse if hasattr(chat, "parse") else client.beta.chat.completions.parse
    answer = parse(messages=QUESTION, response_format=Visit, **ASK)
    expect(isinstance(answer.choices[0].message.parsed, Visit), f"{answer}")
    tools = [openai.pydantic_function_tool(Visit)]
    answer = parse(messages=QUESTION, tools=tools, tool_choice="required", **ASK)
    expect(answer.choices[0].message.tool_calls[0].function.parsed_arguments, f"{answer}")


def json_modes():
    answer = chat.create(messages=QUESTION, response_format={"type": "json_object"}, **ASK)
    if answer.choices[0].finish_reason == "stop":
        json.loads(answer.choices[0].message.content)
    schema = {"name": "visit", "schema": Visit.model_json_schema()}
    asked = {"type": "json_schema", "json_schema": schema}
    answer = chat.create(messages=QUESTION, response_format=asked, **ASK)
    is_weather(answer.choices[0].message.content)


def sampling():
    asked = dict(model=MODEL, max_tokens=12, temperature=0.8, top_p=0.9, seed=5, stop=["\n\n"])
    asked |= dict(presence_penalty=0.1, frequency_penalty=0.1, logit_bias={"50": -5}, n=2, user="u")
    asked |= dict(logprobs=True, top_logprobs=3, metadata={"a": "b"}, store=False)
    answer = chat.create(messages=HELLO, **asked)
    expect(len(answer.choices) == 2, f"{len(answer.choices)} choices")
    expect(all(len(t.top_logprobs) == 3 for t in answer.choices[0].logprobs.content), "alternatives")
    extra = {"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}
    expect(chat.create(messages=HELLO, extra_body=extra, **ASK).choices, "extra_body")


def completions():
    asked = dict(model=MODEL, prompt=["The sky is", "Water is"], max_tokens=6, temperature=0)
    whole = client.completions.create(**asked)
    expect([c.index for c in whole.choices] == [0, 1], "choices")
    texts = ["", ""]
    for chunk in client.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    expect(texts == [c.text for c in whole.choices], f"{texts}")
    echo = client.completions.create(model=MODEL, prompt="Hi", echo=True, logprobs=2, max_tokens=1)
    expect(echo.choices[0].logprobs.token_logprobs[0] is None, "the first token has no probability")


def responses():
    asked = dict(model=MODEL, temperature=0, max_output_tokens=60)
    whole = client.responses.create(input="Say hello.", instructions="Be brief.", **asked)
    expect(whole.output_text and whole.usage.total_tokens, f"{whole}")
    again = [{"role": "user", "content": "Say hello."}, *whole.output, {"role": "user", "content": "Go on."}]
    expect(client.responses.create(input=again, **asked).output_text, "its output as input")
    with client.responses.stream(input="Say hello.", **asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    expect(kinds[0] == "response.created" and final.output_text, f"{kinds}")
    parsed = client.responses.parse(input="Oslo, 2 days", text_format=Visit, **asked)
    expect(isinstance(parsed.output_parsed, Visit), f"{parsed}")


def responses_with_tools():
    asked = dict(model=MODEL, temperature=0, max_output_tokens=80, tools=[FLAT])
    first = client.responses.create(input=QUESTION, tool_choice="required", **asked)
    calls = [item for item in first.output if item.type == "function_call"]
    expect(calls, f"no call: {first}")
    turn = [*QUESTION, *first.output]
    for call in calls:
        is_weather(call.arguments)
        turn.append({"type": "function_call_output", "call_id": call.call_id, "output": "12 degrees"})
    expect(client.responses.create(input=turn, **asked).output, "no answer")
    with client.responses.stream(input=QUESTION, tool_choice="required", **asked) as stream:
        done = [e for e in stream if e.type == "response.function_call_arguments.done"]
    expect(done, "no arguments streamed")
    is_weather(done[0].arguments)


def embeddings_and_moderations():
    pair = client.embeddings.create(model=MODEL, input=["a cat", "a dog"])
    expect(len(pair.data) == 2 and isinstance(pair.data[0].embedding[0], float), "embeddings")
    verdict = client.moderations.create(input="hello")
    expect(verdict.results[0].flagged is False, f"{verdict}")


def errors_are_of_their_class():
    bad, missing = openai.BadRequestError, openai.NotFoundError
    refused(missing, lambda: chat.create(model="gpt-none", messages=HELLO), "gpt-none")
    refused(bad, lambda: chat.create(messages=HELLO, model=MODEL, temperature=9), "temperature")
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    asked = [{"role": "user", "content": picture}]
    refused(bad, lambda: chat.create(messages=asked, model=MODEL), "content[0].type")
    misspelt = dict(extra_body={"temprature": 1}, **ASK)
    error = refused(bad, lambda: chat.create(messages=HELLO, **misspelt), "temprature")
    expect(error.code == "unsupported_parameter" and error.param == "temprature", f"{error.body}")
    refused(missing, lambda: client.images.generate(model=MODEL, prompt="a cat"))
    refused(bad, lambda: client.responses.create(model=MODEL, input="a", background=True), "background")


def timeouts_and_cancels():
    endless = dict(model=MODEL, messages=HELLO, max_tokens=1500, extra_body={"ignore_eos": True})
    refused(openai.APITimeoutError, lambda: client.with_options(timeout=0.3).chat.completions.create(**endless))
    stream = chat.create(stream=True, **endless)
    next(iter(stream))
    stream.close()
    expect(chat.create(messages=HELLO, **ASK).choices, "no answer after a cancel")


async def asynchronous():
    import asyncio

    async with openai.AsyncOpenAI(base_url=URL, api_key="none") as own:
        several = [own.chat.completions.create(messages=HELLO, **ASK) for _ in range(4)]
        texts = {a.choices[0].message.content for a in await asyncio.gather(*several)}
        expect(len(texts) == 1, f"greedy answers differ: {texts}")
        stream = await own.chat.completions.create(messages=HELLO, stream=True, **ASK)
        expect([chunk async for chunk in stream], "nothing streamed")


def models():
    expect(MODEL in [m.id for m in client.models.list()], "not listed")
    expect(client.models.retrieve(MODEL).id == MODEL, "not found")


report(
    [
        *(whole_and_streamed, helper_streams_text, helper_streams_calls, choices_of_tools),
        *(a_round_of_tools, parsed_answers, json_modes, sampling, completions, responses),
        *(responses_with_tools, embeddings_and_moderations, errors_are_of_their_class),
        *(timeouts_and_cancels, asynchronous, models),
    ]
)
