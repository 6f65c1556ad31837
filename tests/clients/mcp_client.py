"""Tools of an MCP server: its client lists them, the model calls each, and the client runs the call.

The server and its client are those of the `mcp` package, in one process. `mcp_tools.json` has
further schemas of the kinds that servers in the wild announce.
"""

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import openai
from mcp import Client
from mcp.server.mcpserver import MCPServer
from pydantic import BaseModel, Field

from checks import MODEL, URL, expect, report

client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
server = MCPServer("desk")
Word = Annotated[str, Field(max_length=12)]
# Bounded, as a small model fills a list to the end.
Kinds = Annotated[list[Literal["file", "folder"]], Field(max_length=2)]


class Place(BaseModel):
    street: Word
    number: int | None = None


@server.tool()
def find_files(pattern: Word, kinds: Kinds | None = None, deep: bool = False) -> str:
    """Files by name."""
    return f"{pattern} {kinds} {deep}"


@server.tool()
def plan_visit(day: date, place: Place, guests: Annotated[int, Field(ge=1, le=9)] = 1) -> str:
    """Plans a visit."""
    return f"{day} {place.street} {guests}"


@server.tool(name="desk.lamp.set")
def lamp(state: Literal["on", "off"], level: Annotated[float, Field(ge=0, le=1)]) -> str:
    """Sets a lamp."""
    return f"{state} {level}"


def function(tool):
    given = {"name": tool.name, "description": tool.description or "", "parameters": schema(tool)}
    return {"type": "function", "function": given}


def schema(tool):
    return getattr(tool, "input_schema", None) or tool.inputSchema


async def each_tool_is_called_and_run():
    async with Client(server) as desk:
        tools = (await desk.list_tools()).tools
        expect(len(tools) == 3, f"{tools}")
        for tool in tools:
            await called_and_run(desk, tool, [function(tool) for tool in tools])


async def called_and_run(desk, tool, functions):
    messages = [{"role": "user", "content": f"Use {tool.name}."}]
    named = {"type": "function", "function": {"name": tool.name}}
    asked = dict(model=MODEL, temperature=0, max_tokens=200, tools=functions)
    message = client.chat.completions.create(messages=messages, tool_choice=named, **asked).choices[0].message
    call = message.tool_calls[0]
    result = await desk.call_tool(call.function.name, json.loads(call.function.arguments))
    failed = getattr(result, "is_error", None) or getattr(result, "isError", None)
    expect(not failed, f"{tool.name}({call.function.arguments}): {result}")
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": result.content[0].text}]
    expect(client.chat.completions.create(messages=messages, **asked).choices, "its result")


async def each_tool_in_responses():
    async with Client(server) as desk:
        for tool in (await desk.list_tools()).tools:
            flat = {"type": "function", **function(tool)["function"], "strict": False}
            named = {"type": "function", "name": tool.name}
            asked = dict(model=MODEL, temperature=0, max_output_tokens=200, tools=[flat], tool_choice=named)
            answer = client.responses.create(input=f"Use {tool.name}.", **asked)
            call = next(item for item in answer.output if item.type == "function_call")
            result = await desk.call_tool(call.name, json.loads(call.arguments))
            expect(result.content, f"{call}")


def wild_schemas_are_taken():
    """One tool at a time and all together: none keeps the others from being served."""
    tools = json.loads((Path(__file__).parent / "mcp_tools.json").read_text())
    functions = [{"type": "function", "function": tool} for tool in tools]
    failed = {}
    for given in [*([one] for one in functions), functions]:
        name = given[0]["function"]["name"] if len(given) == 1 else "all"
        asked = dict(model=MODEL, temperature=0, max_tokens=40, tools=given)
        try:
            client.chat.completions.create(messages=[{"role": "user", "content": "Hi"}], **asked)
            client.chat.completions.create(
                messages=[{"role": "user", "content": "Go."}], tool_choice="required", **asked
            )
        except openai.OpenAIError as error:
            failed[name] = str(error)
    expect(not failed, json.dumps(failed, indent=1))


report([each_tool_is_called_and_run, each_tool_in_responses, wild_schemas_are_taken])
