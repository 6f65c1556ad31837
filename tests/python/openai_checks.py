"""What the checks of the client share."""

import openai

PROMPT = [{"role": "user", "content": "Name three colours."}]


def expect(condition, message):
    if not condition:
        raise AssertionError(message)


def refused(error, call, **wanted):
    """The call must raise `error`, whose attributes must be as wanted."""
    try:
        call()
    except error as raised:
        for name, value in wanted.items():
            got = getattr(raised, name)
            expect(got == value, f"{error.__name__}.{name} is {got!r}, not {value!r}: {raised}")
        return
    raise AssertionError(f"{error.__name__} was not raised")


def loose(client):
    """A client that takes answers which do not fit its own types."""
    return openai.OpenAI(
        base_url=client.base_url, api_key=client.api_key, max_retries=0, timeout=client.timeout
    )
