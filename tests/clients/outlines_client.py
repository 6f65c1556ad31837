"""outlines: its models for OpenAI, vLLM, SGLang and TGI-like servers, with each kind of constraint."""

import re
from typing import Literal

import openai
import outlines
from outlines.types import CFG, Regex
from pydantic import BaseModel, Field

from checks import MODEL, URL, expect, report

client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
ASK = dict(temperature=0, max_tokens=60)
QUESTION = "A visit to Oslo of 2 days."
LARK = 'start: "day " NUMBER\nNUMBER: /[1-7]/'


class Visit(BaseModel):
    city: Literal["Oslo", "Rome", "Lima"]
    days: int = Field(ge=1, le=7)


def texts():
    for make in (outlines.from_openai, outlines.from_vllm, outlines.from_sglang):
        model = make(client, MODEL)
        expect(model("Say hello.", **ASK), f"{make}")
        expect("".join(model.stream("Say hello.", **ASK)), f"{make}")


def schemas():
    for make in (outlines.from_openai, outlines.from_vllm, outlines.from_sglang):
        text = make(client, MODEL)(QUESTION, Visit, **ASK)
        expect(Visit.model_validate_json(text), f"{make}: {text}")


def patterns():
    for make in (outlines.from_vllm, outlines.from_sglang):
        text = make(client, MODEL)(QUESTION, Regex("[A-Z][a-z]{2,5}, [1-7] days"), **ASK)
        expect(re.fullmatch("[A-Z][a-z]{2,5}, [1-7] days", text), f"{make}: {text!r}")


def choices():
    for make in (outlines.from_vllm, outlines.from_sglang):
        text = make(client, MODEL)(QUESTION, Literal["yes", "no"], **ASK)
        expect(text in ("yes", "no"), f"{make}: {text!r}")


def grammars():
    text = outlines.from_vllm(client, MODEL)(QUESTION, CFG(LARK), **ASK)
    expect(re.fullmatch("day [1-7]", text), f"{text!r}")


def numbers():
    text = outlines.from_vllm(client, MODEL)(QUESTION, int, **ASK)
    expect(re.fullmatch(r"[+-]?\d+", text.strip()), f"{text!r}")


async def asynchronous():
    own = openai.AsyncOpenAI(base_url=URL, api_key="none")
    text = await outlines.from_vllm(own, MODEL)(QUESTION, Visit, **ASK)
    expect(Visit.model_validate_json(text), text)


report([texts, schemas, patterns, choices, grammars, numbers, asynchronous])
