#!/usr/bin/env python3
"""realign as a chat model of LangChain: a chain, a stream, and structured output.

  pip install langchain-openai
  examples/python/langchain_chat.py http://127.0.0.1:8080/v1

The key is $OPENAI_API_KEY, or none.
"""
import os
import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Packing(BaseModel):
    """What to pack."""

    item: str
    count: int


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    # An empty model name stands for the one that is served.
    model = ChatOpenAI(base_url=sys.argv[1], api_key=os.environ.get("OPENAI_API_KEY", "none"), model="", max_tokens=80, temperature=0)
    prompt = ChatPromptTemplate.from_messages([("system", "You answer in one sentence."), ("user", "{question}")])
    chain = prompt | model | StrOutputParser()
    print(chain.invoke({"question": "How many socks should I take on a trip?"}))
    for piece in chain.stream({"question": "How often should I wash my car?"}):
        print(piece, end="", flush=True)
    print()
    # The answer is constrained to the schema while it is made.
    print(model.with_structured_output(Packing, method="json_schema").invoke("Socks for a trip of three days."))


if __name__ == "__main__":
    main()
