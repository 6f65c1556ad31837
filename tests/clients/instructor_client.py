"""instructor: each of its modes for OpenAI's API, whole and streamed."""

from collections.abc import Iterable
from typing import Literal

import instructor
import openai
from instructor.core.exceptions import IncompleteOutputException, InstructorRetryException
from pydantic import BaseModel, Field, ValidationError

from checks import MODEL, URL, expect, report

QUESTION = [{"role": "user", "content": "A visit to Oslo of 2 days."}]
MODES = ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "RESPONSES_TOOLS"]


class Visit(BaseModel):
    """A visit to a city."""

    city: Literal["Oslo", "Rome", "Lima"]
    days: int = Field(ge=1, le=7)


class Trip(BaseModel):
    """Nested, optional and listed."""

    first: Visit
    second: Visit | None
    tags: list[Literal["sun", "snow"]] = Field(max_length=3)


def client(mode, kind=openai.OpenAI):
    make = instructor.from_openai
    return make(kind(base_url=URL, api_key="none", max_retries=0), mode=instructor.Mode[mode])


def asked(mode):
    limit = "max_output_tokens" if mode.startswith("RESPONSES") else "max_tokens"
    return {"model": MODEL, "temperature": 0, limit: 160, "max_retries": 0}


def every_mode(model):
    failed = {}
    for mode in MODES:
        try:
            create = client(mode).chat.completions.create
            found = create(messages=list(QUESTION), response_model=model, **asked(mode))
            expect(isinstance(found, model), f"{found}")
        except Exception as error:
            failed[mode] = f"{type(error).__name__}: {error}"
    expect(not failed, f"{failed}")


def flat():
    every_mode(Visit)


def nested():
    every_mode(Trip)


def json_objects():
    # The schema is in the prompt only, so a small model may write another object, or a longer one.
    create = client("JSON").chat.completions.create
    try:
        create(messages=list(QUESTION), response_model=Visit, **asked("JSON"))
    except (ValidationError, IncompleteOutputException, InstructorRetryException) as error:
        expect("Error code" not in str(error), f"{error}")


def partial():
    stream = client("TOOLS").chat.completions.create_partial
    parts = list(stream(messages=list(QUESTION), response_model=Visit, **asked("TOOLS")))
    expect(parts and parts[-1].city and parts[-1].days, f"{parts[-1:]}")


def iterable():
    # Tokens for as many visits as a small model likes.
    stream = client("TOOLS").chat.completions.create_iterable
    few = asked("TOOLS") | {"max_tokens": 300}
    found = []
    try:
        for visit in stream(messages=list(QUESTION), response_model=Visit, **few):
            found.append(visit)
    except Exception as error:
        expect(found, f"nothing was found: {error}")
    expect(all(isinstance(visit, Visit) for visit in found), f"{found}")


def parallel():
    # Tokens for sixteen calls, which is as many as an answer has.
    many = asked("PARALLEL_TOOLS") | {"max_tokens": 900, "extra_body": {"tool_choice": "required"}}
    create = client("PARALLEL_TOOLS").chat.completions.create
    found = create(messages=list(QUESTION), response_model=Iterable[Visit], **many)
    expect(all(isinstance(visit, Visit) for visit in found), f"{found}")


def with_completion():
    create = client("TOOLS").chat.completions.create_with_completion
    visit, raw = create(messages=list(QUESTION), response_model=Visit, **asked("TOOLS"))
    expect(len(raw.choices[0].message.tool_calls) == 1, f"{raw}")


async def asynchronous():
    create = client("TOOLS", openai.AsyncOpenAI).chat.completions.create
    expect(await create(messages=list(QUESTION), response_model=Visit, **asked("TOOLS")), "nothing")


report([flat, nested, json_objects, partial, iterable, parallel, with_completion, asynchronous])
