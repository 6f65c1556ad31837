"""pydantic-ai: agents over chat completions and responses, with each way of structured output."""

from typing import Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError, UnexpectedModelBehavior, UsageLimitExceeded
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

from checks import MODEL, URL, expect, refused, report

provider = OpenAIProvider(base_url=URL, api_key="none")
MODELS = [OpenAIChatModel(MODEL, provider=provider), OpenAIResponsesModel(MODEL, provider=provider)]
SETTINGS = {"temperature": 0, "max_tokens": 120}
QUESTION = "A visit to Oslo of 2 days."


class Visit(BaseModel):
    """A visit to a city."""

    city: Literal["Oslo", "Rome", "Lima"]
    days: int = Field(ge=1, le=7)


def agent(model, **more):
    return Agent(model, model_settings=SETTINGS, **more)


def texts():
    for model in MODELS:
        one = agent(model, system_prompt="Be brief.")
        first = one.run_sync("Say hello.")
        expect(first.output and first.usage.total_tokens, f"{first}")
        again = one.run_sync("Go on.", message_history=first.all_messages())
        expect(again.output, f"{again}")


async def streams():
    for model in MODELS:
        one = agent(model)
        whole = (await one.run("Say hello.")).output
        async with one.run_stream("Say hello.") as stream:
            text = "".join([part async for part in stream.stream_text(delta=True)])
        expect(text == whole, f"{text!r} != {whole!r}")


def structured_outputs():
    for model in MODELS:
        for kind in (ToolOutput, NativeOutput):
            found = agent(model, output_type=kind(Visit), retries=0).run_sync(QUESTION).output
            expect(isinstance(found, Visit), f"{kind} {found}")


def prompted_output():
    # The prompt says how; with `json_object` the answer is JSON, though rarely a visit.
    for model in MODELS:
        try:
            agent(model, output_type=PromptedOutput(Visit), retries=0).run_sync(QUESTION)
        except UnexpectedModelBehavior:
            pass


def tools():
    for model in MODELS:
        ran = []
        one = agent(model, output_type=Visit, retries=0)

        @one.tool_plain
        def get_weather(city: Literal["Oslo", "Rome", "Lima"]) -> str:
            """The weather of a city."""
            ran.append(city)
            return "12 degrees"

        try:
            one.run_sync(QUESTION, usage_limits=UsageLimits(request_limit=4))
        except UsageLimitExceeded:
            # A small model may call the tool again and again; every turn was taken.
            expect(len(ran) >= 4, f"{ran}")


async def streamed_structures():
    for model in MODELS:
        async with agent(model, output_type=ToolOutput(Visit), retries=0).run_stream(QUESTION) as stream:
            parts = [part async for part in stream.stream_output()]
        expect(isinstance(parts[-1], Visit), f"{parts}")


def errors():
    wrong = OpenAIChatModel("gpt-none", provider=provider)
    error = refused(ModelHTTPError, lambda: agent(wrong).run_sync("a"), "gpt-none")
    expect(error.status_code == 404, f"{error}")


report([texts, streams, structured_outputs, prompted_output, tools, streamed_structures, errors])
