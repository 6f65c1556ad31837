"""LlamaIndex: `OpenAILike`, with chat, completions, functions and structured answers."""

from typing import Literal

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

from checks import MODEL, URL, expect, is_weather, report

COMMON = dict(model=MODEL, api_base=URL, api_key="none", temperature=0, max_tokens=80, max_retries=0)
llm = OpenAILike(is_chat_model=True, is_function_calling_model=True, context_window=2048, **COMMON)
HELLO = [ChatMessage(role="user", content="Say hello.")]
QUESTION = "How is the weather in Oslo for 2 days?"


class Visit(BaseModel):
    """A visit to a city."""

    city: Literal["Oslo", "Rome", "Lima"]
    days: int = Field(ge=1, le=7)


def get_weather(city: Literal["Oslo", "Rome", "Lima"], days: int = Field(ge=1, le=7)) -> str:
    """The weather of a city."""
    is_weather({"city": city, "days": days})
    return "12 degrees"


tool = FunctionTool.from_defaults(fn=get_weather)


def chats():
    whole = llm.chat(HELLO).message.content
    parts = [part.delta or "" for part in llm.stream_chat(HELLO)]
    expect(whole and "".join(parts) == whole, f"{whole!r} {parts}")


def completes():
    plain = OpenAILike(is_chat_model=False, **COMMON)
    whole = plain.complete("The sky is").text
    parts = [part.delta for part in plain.stream_complete("The sky is")]
    expect(whole and "".join(parts) == whole, f"{whole!r} {parts}")


def calls_functions():
    answer = llm.chat_with_tools([tool], user_msg=QUESTION, tool_required=True)
    calls = llm.get_tool_calls_from_response(answer)
    for call in calls:
        is_weather(call.tool_kwargs)
    history = [ChatMessage(role="user", content=QUESTION), answer.message]
    for call in calls:
        more = {"tool_call_id": call.tool_id}
        history.append(ChatMessage(role="tool", content="12 degrees", additional_kwargs=more))
    expect(llm.chat_with_tools([tool], chat_history=history).message, "its own call")


def streams_functions():
    parts = list(llm.stream_chat_with_tools([tool], user_msg=QUESTION, tool_required=True))
    for call in llm.get_tool_calls_from_response(parts[-1]):
        is_weather(call.tool_kwargs)


def runs_functions():
    answer = llm.predict_and_call([tool], user_msg=QUESTION, tool_required=True, allow_parallel_tool_calls=False)
    expect("12 degrees" in str(answer), f"{answer}")


def structures():
    prompt = PromptTemplate("A visit: {text}")
    found = llm.structured_predict(Visit, prompt, text="Oslo, 2 days")
    expect(isinstance(found, Visit), f"{found}")
    kind = dict(is_function_calling_model=False, should_use_structured_outputs=True)
    tuned = OpenAILike(is_chat_model=True, **kind, **COMMON)
    expect(isinstance(tuned.structured_predict(Visit, prompt, text="Oslo, 2 days"), Visit), "json_schema")


async def asynchronous():
    expect((await llm.achat(HELLO)).message.content, "nothing")
    parts = [part.delta async for part in await llm.astream_chat(HELLO)]
    expect("".join(part or "" for part in parts), "nothing streamed")


report([chats, completes, calls_functions, streams_functions, runs_functions, structures, asynchronous])
