#!/usr/bin/env python3
"""An agent with tools, in one file: the model calls functions until it answers.

  pip install "openai>=1,<4"
  examples/python/agent.py http://127.0.0.1:8080/v1 "What is 17 times 23?"

The first turn has to call a tool, so that it works with small models too. The key is $OPENAI_API_KEY, or none.
"""
import argparse
import json
import os

import openai

OPERATIONS = {"add": lambda a, b: a + b, "multiply": lambda a, b: a * b}
NUMBERS = {"a": {"type": "integer"}, "b": {"type": "integer"}}


def tool(name, what):
    parameters = {"type": "object", "properties": NUMBERS, "required": ["a", "b"], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": what, "strict": True, "parameters": parameters}}


TOOLS = [tool("add", "The sum of two whole numbers."), tool("multiply", "The product of two whole numbers.")]


def result(call):
    """What a call gives; what is wrong with it is told to the model, which may try again."""
    try:
        arguments = json.loads(call.function.arguments)
        return str(OPERATIONS[call.function.name](arguments["a"], arguments["b"]))
    except (ValueError, KeyError, TypeError) as error:
        return f"error: {error!r}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url")
    parser.add_argument("prompt", nargs="?", default="What is 17 times 23?")
    parser.add_argument("--turns", type=int, default=4, help="most turns that may call tools [default: 4]")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": args.prompt}]
    for turn in range(args.turns + 1):
        choice = "required" if turn == 0 else "none" if turn == args.turns else "auto"
        answer = client.chat.completions.create(
            model=model, messages=messages, tools=TOOLS, tool_choice=choice, temperature=0, max_tokens=200
        )
        message = answer.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            print(message.content)
            return
        for call in message.tool_calls:
            found = result(call)
            print(f"{call.function.name}({call.function.arguments}) = {found}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": found})


if __name__ == "__main__":
    main()
