"""Histories as clients keep them: recorded ones, and the server's own answers, sent back.

A client that has kept an odd turn can go on only if the server takes it, on every route.
"""

import json
from pathlib import Path

import openai

from checks import MODEL, ROOT, URL, WEATHER, expect, report

client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
HISTORIES = json.loads((Path(__file__).parent / "histories.json").read_text())
ASK = dict(model=MODEL, temperature=0, max_tokens=4)
FLAT = {"type": "function", **WEATHER["function"]}
QUESTION = {"role": "user", "content": "How is the weather in Oslo?"}
CALL = {"id": "c1", "type": "function"}


def turns(case):
    """The messages of a case: a call and its result, or those that it has."""
    if "messages" in case:
        return case["messages"]
    function = {"name": "get_weather", "arguments": case.get("arguments", "{}")}
    call = {"role": "assistant", "content": None, "tool_calls": [CALL | {"function": function}]}
    result = case.get("result", {"content": "12 degrees"})
    return [call] + ([] if result is None else [{"role": "tool", "tool_call_id": "c1"} | result])


def taken(send):
    """Sends every history, and fails with all that are not taken."""
    failed = {}
    for case in HISTORIES:
        try:
            send(case)
        except openai.OpenAIError as error:
            failed[case["name"]] = str(error)
    expect(not failed, json.dumps(failed, indent=1))


def in_chat():
    def send(case):
        messages = [QUESTION, *turns(case), {"role": "user", "content": "Go on."}]
        client.chat.completions.create(messages=messages, **ASK)
        client.chat.completions.create(messages=messages, tools=[WEATHER], **ASK)

    taken(send)


def in_responses():
    def send(case):
        if "arguments" not in case and "result" not in case:
            return
        call, *results = turns(case)
        function = call["tool_calls"][0]["function"]
        items = [QUESTION, {"type": "function_call", "call_id": "c1", **function}]
        for result in results:
            output = result["content"]
            if isinstance(output, list):
                output = [{"type": "input_text", "text": part["text"]} for part in output]
            call_id = result["tool_call_id"]
            items.append({"type": "function_call_output", "call_id": call_id, "output": output or ""})
        client.responses.create(model=MODEL, input=items, tools=[FLAT], max_output_tokens=4, temperature=0)

    taken(send)


def post(path, body):
    return client.with_options(max_retries=0).post(f"{ROOT}{path}", body=body, cast_to=object)


def in_messages():
    """Anthropic's format has objects as inputs; some clients send what they could not read as text."""

    def send(case):
        if "arguments" not in case and "result" not in case:
            return
        call, *results = turns(case)
        try:
            given = json.loads(call["tool_calls"][0]["function"]["arguments"])
        except ValueError:
            given = {}
        # What cannot be sent as an object is sent as an empty one, and so is half a character.
        sendable = isinstance(given, dict) and "\\ud83d" not in json.dumps(given)
        given = given if sendable else {}
        blocks = [{"type": "tool_use", "id": "c1", "name": "get_weather", "input": given}]
        messages = [QUESTION, {"role": "assistant", "content": blocks}]
        for result in results:
            block = {"type": "tool_result", "tool_use_id": "c1"}
            block |= {"content": result["content"]} if result["content"] is not None else {}
            messages.append({"role": "user", "content": [block]})
        post("/v1/messages", {"model": MODEL, "messages": messages, "max_tokens": 4})

    taken(send)


def in_ollama_chat():
    def send(case):
        messages = []
        for message in turns(case):
            kept = {key: message[key] for key in ("role", "content") if message.get(key) is not None}
            if isinstance(kept.get("content"), list) or kept["role"] in ("developer", "function"):
                return
            messages.append(kept)
        body = {"model": MODEL, "messages": [QUESTION, *messages], "stream": False}
        post("/api/chat", body | {"options": {"num_predict": 4}})

    taken(send)


def own_answers_in_chat():
    """Whole and streamed answers, cut at every length, are turns of the next request."""
    for limit in (1, 2, 4, 7, 11, 16, 24, 40):
        for choice in ("auto", "required"):
            asked = dict(model=MODEL, tools=[WEATHER], tool_choice=choice, seed=limit, temperature=1)
            whole = client.chat.completions.create(messages=[QUESTION], max_tokens=limit, **asked)
            again([QUESTION], whole.choices[0].message.model_dump())
            stream = client.chat.completions.create(
                messages=[QUESTION], max_tokens=limit, stream=True, **asked
            )
            again([QUESTION], assembled(stream))


def assembled(stream):
    """The message that a plain client makes of deltas."""
    message = {"role": "assistant", "content": None}
    for chunk in stream:
        delta = chunk.choices[0].delta
        if delta.content:
            message["content"] = (message["content"] or "") + delta.content
        for call in delta.tool_calls or []:
            calls = message.setdefault("tool_calls", [])
            if call.index == len(calls):
                calls.append(CALL | {"id": call.id, "function": {"name": call.function.name, "arguments": ""}})
            calls[call.index]["function"]["arguments"] += call.function.arguments or ""
    return message


def again(messages, message):
    messages = [*messages, message]
    for call in message.get("tool_calls") or []:
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": "12 degrees"})
    expect("<tool_call" not in (message["content"] or ""), f"a call's mark in the text: {message}")
    client.chat.completions.create(messages=[*messages, QUESTION], tools=[WEATHER], **ASK)


def own_answers_in_responses():
    for limit in (1, 4, 8, 16, 24, 40):
        for choice in ("auto", "required"):
            asked = dict(model=MODEL, tools=[FLAT], tool_choice=choice, temperature=1)
            first = client.responses.create(input=[QUESTION], max_output_tokens=limit, **asked)
            items = [QUESTION, *(item.model_dump(exclude_none=True) for item in first.output)]
            for item in first.output:
                if item.type == "function_call":
                    items.append({"type": "function_call_output", "call_id": item.call_id, "output": "12"})
            client.responses.create(model=MODEL, input=items, tools=[FLAT], max_output_tokens=4)


def own_answers_in_messages():
    tool = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}
    for limit in (1, 4, 8, 16, 24, 40):
        asked = {"model": MODEL, "tools": [tool], "tool_choice": {"type": "any"}, "messages": [QUESTION]}
        first = post("/v1/messages", asked | {"max_tokens": limit})
        turn = [QUESTION, {"role": "assistant", "content": first["content"]}]
        results = [
            {"type": "tool_result", "tool_use_id": block["id"], "content": "12"}
            for block in first["content"]
            if block["type"] == "tool_use"
        ]
        turn.append({"role": "user", "content": [*results, {"type": "text", "text": "Go on."}]})
        post("/v1/messages", {"model": MODEL, "tools": [tool], "messages": turn, "max_tokens": 4})


report(
    [
        *(in_chat, in_responses, in_messages, in_ollama_chat),
        *(own_answers_in_chat, own_answers_in_responses, own_answers_in_messages),
    ]
)
