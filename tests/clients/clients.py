"""The clients of `make test-clients`: what is installed, and which script drives it.

Versions are pinned here; all that they bring along is pinned by the file of the same name in
`locks/`, which `run.py --lock` writes. Node's are in `package.json` and its lock.
"""

# name: (script, what pip installs)
PYTHON = {
    "openai-1": ("openai_python.py", ["openai==1.109.1"]),
    "openai-2": ("openai_python.py", ["openai==2.54.0"]),
    "openai-3": ("openai_python.py", ["openai==3.57.0"]),
    "histories": ("histories.py", ["openai==3.57.0"]),
    "litellm": ("litellm_client.py", ["litellm==1.110.2"]),
    "instructor": ("instructor_client.py", ["instructor==1.17.0"]),
    "langchain": ("langchain_client.py", ["langchain-openai==1.7.4", "langchain-tests==1.1.9"]),
    "llama-index": ("llama_index_client.py", ["llama-index-llms-openai-like==0.8.1"]),
    "pydantic-ai": ("pydantic_ai_client.py", ["pydantic-ai-slim[openai]==2.68.0"]),
    "openai-agents": ("agents_client.py", ["openai-agents==0.24.0"]),
    "outlines": ("outlines_client.py", ["outlines==1.3.3", "openai==3.57.0"]),
    "lm-eval": ("lm_eval_client.py", ["lm-eval[api]==0.4.13"]),
    "anthropic": ("anthropic_client.py", ["anthropic==2.14.0"]),
    "ollama": ("ollama_client.py", ["ollama==0.6.3"]),
    "mcp": ("mcp_client.py", ["mcp==2.3.0", "openai==3.57.0"]),
}

# name: (script, the package whose version is shown)
NODE = {
    "openai-node": ("openai_node.mjs", "openai"),
    "ai-sdk": ("ai_sdk.mjs", "ai"),
}
