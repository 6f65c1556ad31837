"""ollama-python against /api/*."""

import json

import ollama

from checks import HELLO, MODEL, ROOT, WEATHER, expect, is_weather, refused, report

client = ollama.Client(host=ROOT)
OPTIONS = {"temperature": 0, "num_predict": 60, "num_ctx": 2048, "seed": 1}
QUESTION = [{"role": "user", "content": "How is the weather in Oslo for 2 days?"}]
SCHEMA = WEATHER["function"]["parameters"]


def get_weather(city: str, days: int) -> str:
    """The weather of a city.

    Args:
        city: the city's name
        days: how many days
    """
    return "12 degrees"


def chats():
    whole = client.chat(model=MODEL, messages=HELLO, options=OPTIONS)
    expect(whole.message.content and whole.done and whole.eval_count, f"{whole}")
    parts = list(client.chat(model=MODEL, messages=HELLO, options=OPTIONS, stream=True))
    expect("".join(part.message.content or "" for part in parts) == whole.message.content, f"{parts}")
    expect(parts[-1].done and parts[-1].done_reason in ("stop", "length"), f"{parts[-1]}")


def generates():
    asked = dict(model=MODEL, prompt="Say hello.", system="Be brief.", options=OPTIONS)
    whole = client.generate(**asked)
    parts = list(client.generate(stream=True, **asked))
    expect("".join(part.response for part in parts) == whole.response, f"{parts}")


def functions():
    for tools in ([WEATHER], [get_weather]):
        answer = client.chat(model=MODEL, messages=QUESTION, tools=tools, options=OPTIONS)
        turns = [*QUESTION, answer.message]
        for call in answer.message.tool_calls or []:
            expect(call.function.name == "get_weather", f"{call}")
        turns.append({"role": "tool", "tool_name": "get_weather", "content": "12 degrees"})
        expect(client.chat(model=MODEL, messages=turns, tools=tools, options=OPTIONS).message, "its own answer")
        parts = list(client.chat(model=MODEL, messages=QUESTION, tools=tools, options=OPTIONS, stream=True))
        expect(parts[-1].done, f"{parts[-1]}")


def formats():
    answer = client.chat(model=MODEL, messages=QUESTION, format=SCHEMA, options=OPTIONS)
    is_weather(answer.message.content)
    answer = client.generate(model=MODEL, prompt="An object.", format="json", options=OPTIONS)
    if answer.done_reason == "stop":
        json.loads(answer.response)


def lists():
    expect(MODEL in [model.model.removesuffix(":latest") for model in client.list().models], "not listed")
    expect("tools" in client.show(MODEL).capabilities, "no functions")
    expect(client.ps().models, "nothing runs")


def other_fields():
    more = dict(keep_alive="5m", think=False)
    expect(client.chat(model=MODEL, messages=HELLO, options=OPTIONS, **more).message.content, "fields")
    odd = OPTIONS | {"top_k": 20, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.1, "repeat_last_n": -1}
    expect(client.chat(model=MODEL, messages=HELLO, options=odd | {"stop": ["\n"]}).done, "options")
    expect(client.chat(model=f"{MODEL}:latest", messages=HELLO, options=OPTIONS).done, ":latest")


def embeds():
    found = client.embed(model=MODEL, input=["a cat", "a dog"])
    expect(len(found.embeddings) == 2 and len(found.embeddings[0]) > 10, f"{found}")
    one = client.embeddings(model=MODEL, prompt="a cat").embedding
    expect(list(one) == list(found.embeddings[0]), "the older route gives another vector")


def errors():
    kind = ollama.ResponseError
    error = refused(kind, lambda: client.chat(model="none", messages=HELLO), "none")
    expect(error.status_code == 404, f"{error.status_code}")
    odd = {"mirostat": 2}
    refused(kind, lambda: client.chat(model=MODEL, messages=HELLO, options=odd), "mirostat")
    picture = [{"role": "user", "content": "What?", "images": [b"AA"]}]
    refused(kind, lambda: client.chat(model=MODEL, messages=picture), "images")


async def asynchronous():
    own = ollama.AsyncClient(host=ROOT)
    stream = await own.chat(model=MODEL, messages=HELLO, options=OPTIONS, stream=True)
    expect("".join([part.message.content or "" async for part in stream]), "nothing streamed")


report([chats, generates, functions, formats, lists, other_fields, embeds, errors, asynchronous])
