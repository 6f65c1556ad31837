"""anthropic-python against /v1/messages."""

import anthropic

from checks import HELLO, MODEL, ROOT, WEATHER, expect, is_weather, refused, report

client = anthropic.Anthropic(base_url=ROOT, api_key="none", max_retries=0)
messages = client.messages
# Versions without `temperature` in their types send it as part of the body.
ASK = dict(model=MODEL, max_tokens=80, extra_body={"temperature": 0})
QUESTION = [{"role": "user", "content": "How is the weather in Oslo for 2 days?"}]
SCHEMA = WEATHER["function"]["parameters"]
TOOL = {"name": "get_weather", "description": "The weather of a city.", "input_schema": SCHEMA}


def calls(message):
    return [block for block in message.content if block.type == "tool_use"]


def whole_and_streamed():
    whole = messages.create(messages=HELLO, system="Be brief.", **ASK)
    expect(whole.content[0].text and whole.usage.output_tokens > 0, f"{whole}")
    with messages.stream(messages=HELLO, system="Be brief.", **ASK) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    expect(text == whole.content[0].text, f"{text!r} != {whole}")
    expect(final.stop_reason == whole.stop_reason, f"{final.stop_reason}")
    expect(final.usage.output_tokens == whole.usage.output_tokens, f"{final.usage}")
    kinds = [event.type for event in messages.create(messages=HELLO, stream=True, **ASK)]
    expect(kinds[0] == "message_start" and kinds[-1] == "message_stop", f"{kinds}")


def tools():
    choices = ({"type": "any"}, {"type": "tool", "name": "get_weather"}, {"type": "auto"}, {"type": "none"})
    for choice in choices:
        answer = messages.create(messages=QUESTION, tools=[TOOL], tool_choice=choice, **ASK)
        for call in calls(answer):
            is_weather(call.input)
        if choice["type"] in ("any", "tool"):
            expect(calls(answer) and answer.stop_reason in ("tool_use", "max_tokens"), f"{answer}")
        if choice["type"] == "tool":
            expect(answer.stop_reason == "tool_use", f"{answer}")


def a_round_of_tools():
    first = messages.create(messages=QUESTION, tools=[TOOL], tool_choice={"type": "any"}, **ASK)
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "12 degrees"}]}
        for call in calls(first)
    ]
    turns = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    expect(messages.create(messages=turns, tools=[TOOL], **ASK).content, "no answer")


def tools_streamed():
    with messages.stream(messages=QUESTION, tools=[TOOL], tool_choice={"type": "any"}, **ASK) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    expect("input_json" in kinds, f"{kinds}")
    for call in calls(final):
        is_weather(call.input)


def structured_output():
    asked = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = messages.create(messages=QUESTION, output_config=asked, **ASK)
    is_weather(answer.content[0].text)


def other_fields():
    more = dict(stop_sequences=["\n"], metadata={"user_id": "u"}, thinking={"type": "disabled"})
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    expect(messages.create(messages=HELLO, system=system, **more, **ASK).content is not None, "fields")
    counted = messages.count_tokens(model=MODEL, messages=QUESTION, tools=[TOOL]).input_tokens
    asked = messages.create(messages=QUESTION, tools=[TOOL], **ASK).usage
    read = asked.input_tokens + (asked.cache_read_input_tokens or 0)
    expect(counted == read, f"counted {counted}, used {asked}")
    expect(MODEL in [model.id for model in client.models.list()], "models")


def errors():
    bad, missing = anthropic.BadRequestError, anthropic.NotFoundError
    refused(missing, lambda: messages.create(messages=HELLO, **(ASK | {"model": "claude-none"})), "claude-none")
    refused(bad, lambda: messages.create(messages=HELLO, model=MODEL, max_tokens=-1), "max_tokens")
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    refused(bad, lambda: messages.create(messages=[{"role": "user", "content": [picture]}], **ASK), "image")
    misspelt = ASK | {"extra_body": {"temprature": 1}}
    refused(bad, lambda: messages.create(messages=HELLO, **misspelt), "temprature")
    slow = ASK | {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    try:
        client.with_options(timeout=0.3).messages.create(messages=HELLO, **slow)
        raise AssertionError("no error")
    except (anthropic.APITimeoutError, bad):
        pass


async def asynchronous():
    own = anthropic.AsyncAnthropic(base_url=ROOT, api_key="none")
    async with own.messages.stream(messages=HELLO, **ASK) as stream:
        expect("".join([text async for text in stream.text_stream]), "nothing streamed")


report(
    [
        *(whole_and_streamed, tools, a_round_of_tools, tools_streamed, structured_output),
        *(other_fields, errors, asynchronous),
    ]
)
