#!/usr/bin/env python3
"""Talk to realign with the `openai` package: an answer, a stream, a pinned generation, and which generation answered.

  pip install "openai>=1,<4"
  examples/python/chat.py http://127.0.0.1:8080/v1 "How many socks should I take on a trip?"

The key is $OPENAI_API_KEY, or none.
"""
import argparse
import os

import openai


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base_url")
    parser.add_argument("prompt", nargs="?", default="How many socks should I take on a trip?")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": args.prompt}]

    # The headers of an answer say which generation made it, and whether what serves is aligned.
    raw = client.chat.completions.with_raw_response.create(model=model, messages=messages, max_tokens=60)
    print(f"generation {raw.headers['x-realign-generation']}, alignment {raw.headers['x-realign-alignment']}")
    print(raw.parse().choices[0].message.content)

    # A stream never changes its generation, even if another one is swapped in meanwhile.
    for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=60, stream=True):
        print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
    print()

    # NAME@base is the model without an adapter; NAME@GENERATION is one generation, whatever serves.
    base = client.chat.completions.create(model=f"{model}@base", messages=messages, max_tokens=60)
    print(f"{base.model}: {base.choices[0].message.content}")


if __name__ == "__main__":
    main()
