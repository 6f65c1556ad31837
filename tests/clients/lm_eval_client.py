"""lm-eval: a log-likelihood task and a generation task, over the API and without torch.

The tasks and their documents are in `lm_eval_tasks`; the server's own tokenizer counts the tokens.
"""

import os
from pathlib import Path

import requests
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from checks import MODEL, URL, expect, report

TASKS = Path(__file__).parent / "lm_eval_tasks"


def evaluated(kind, task, path, **more):
    """The results of a task, and what lm-eval logged of each document."""
    args = {"model": MODEL, "base_url": f"{URL}/{path}", "num_concurrent": 1, "max_retries": 1} | more
    found = simple_evaluate(
        model=kind,
        model_args=args,
        tasks=[task],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template="chat" in path,
    )
    return found["results"][task], found["samples"][task]


def likelihood(context, continuation):
    """The same number by hand: the log-probabilities of the continuation's tokens, summed."""
    body = {"model": MODEL, "prompt": context + continuation, "echo": True, "logprobs": 1}
    answer = requests.post(f"{URL}/completions", json=body | {"max_tokens": 0}).json()
    scores = answer["choices"][0]["logprobs"]
    pairs = zip(scores["text_offset"], scores["token_logprobs"])
    return sum(score for offset, score in pairs if offset >= len(context))


def asked(sample):
    """The contexts and continuations of a document; which form they are logged in depends on the caller."""
    requests = sample["arguments"]
    requests = requests.values() if isinstance(requests, dict) else requests
    return [tuple(one.values()) if isinstance(one, dict) else one for one in requests]


def loglikelihoods():
    results, samples = evaluated("local-completions", "realign_choice", "completions")
    expect(0 <= results["acc,none"] <= 1, f"{results}")
    checked = 0
    for sample in samples:
        for (context, continuation), (score, _) in zip(asked(sample), sample["filtered_resps"]):
            own = likelihood(context, continuation)
            expect(abs(own - float(score)) < 0.05, f"{continuation!r}: lm-eval {score}, by hand {own}")
            checked += 1
    expect(checked >= 8, f"{checked} continuations")
    expect(results["acc,none"] >= 0.5, f"plain facts: {results}")


def generations():
    results, samples = evaluated("local-completions", "realign_generate", "completions")
    expect("exact_match,none" in results and all(sample["resps"] for sample in samples), f"{results}")


def chat_generations():
    results, samples = evaluated("local-chat-completions", "realign_generate", "chat/completions")
    expect(all(sample["resps"][0][0] for sample in samples), f"{results} {samples}")


# The tasks name their documents by relative paths.
os.chdir(TASKS)
report([loglikelihoods, generations, chat_generations])
