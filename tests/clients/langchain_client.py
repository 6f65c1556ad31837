"""LangChain's standard integration tests of chat models and embeddings, over `langchain-openai`."""

import sys

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

from checks import MODEL, URL, say

# Tests that ask more of a model than 135 million parameters have, and what they ask.
BEYOND_THE_MODEL = {
    "test_agent_loop": "it ends the loop with a sentence",
    "test_tool_calling": "it calls the function with the number of the question",
    "test_tool_calling_async": "as above",
    "test_json_mode": "it fits a schema that only the prompt describes",
}


class TestChat(ChatModelIntegrationTests):
    api = {"stream_usage": True}

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        common = {"model": MODEL, "base_url": URL, "api_key": "none", "temperature": 0}
        # Without the penalty, greedy texts in JSON go round in circles.
        penalty = {"extra_body": {"frequency_penalty": 0.5}}
        return common | {"max_tokens": 200, "max_retries": 0} | penalty | self.api

    @property
    def model_override_value(self):
        return f"{MODEL}@base"

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_image_inputs(self):
        return False


class TestResponses(TestChat):
    api = {"use_responses_api": True}


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": MODEL, "base_url": URL, "api_key": "none", "check_embedding_ctx_length": False}


class Reporter:
    """Says what pytest finds."""

    def pytest_collection_modifyitems(self, config, items):
        wanted = [item for item in items if item.originalname not in BEYOND_THE_MODEL]
        config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
        items[:] = wanted

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.split("::", 1)[-1]
        if report.failed:
            say(f"{name} ({report.when})", report.longreprtext)
        elif report.when == "call" and report.passed:
            say(name)


if __name__ == "__main__":
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", "--asyncio-mode=auto"]
    # The client keeps its connections for all tests.
    options += ["-o", "asyncio_default_test_loop_scope=session"]
    named = ["-k", " or ".join(sys.argv[1:])] if sys.argv[1:] else []
    pytest.main([__file__, *options, *named], plugins=[Reporter()])
