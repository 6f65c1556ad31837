#!/usr/bin/env python3
"""Train the same pairs here and with PyTorch + PEFT, in turn on the same model file, and print ratios.

  python3 benches/compare/training.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf

Needs `pip install torch transformers peft gguf` (CPU builds do) and Linux. Two threads on both sides. The
pairs are made-up tokens of fixed lengths (`realign bench --learning` makes the same), LoRA of rank 16 on q
and v of every layer, reference log-probabilities computed beforehand on both sides. Tokens are counted as
PyTorch computes them, each response with its own prompt. `--side peer CASE` runs one of PyTorch's cases in
a process of its own, so that peak memory is that case's.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

BETA = 0.1


def tokens(seed, length):
    return [3 + (seed * 131 + i * 17) % 40000 for i in range(length)]


def long_pair(i):
    return "invert", tokens(i, 128), tokens(i + 1000, 128), tokens(i + 2000, 128)


def short_pair(i):
    kind = ("invert", "punish", "retain")[i % 3]
    return kind, tokens(i, 50 + i * 7 % 31), tokens(i + 1000, 45 + i * 11 % 37), tokens(i + 2000, 45 + i * 5 % 37)


def count(pairs):
    return sum(2 * len(p) + len(a) + len(b) for _, p, a, b in pairs)


class Peer:
    """transformers with a PEFT adapter, in float32 or under bfloat16 autocast."""

    def __init__(self, model, threads, bf16):
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        self.torch, self.bf16 = torch, bf16
        torch.set_num_threads(threads)
        path = pathlib.Path(model).resolve()
        base = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        config = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        self.model = get_peft_model(base, config)

    def autocast(self):
        return self.torch.autocast("cpu", dtype=self.torch.bfloat16, enabled=self.bf16)

    def logits(self, rows):
        """Logits of the response positions of rows that are padded on the right."""
        torch = self.torch
        longest = max(len(p) + len(r) for p, r in rows)
        ids = torch.tensor([p + r + [2] * (longest - len(p) - len(r)) for p, r in rows])
        mask = torch.tensor([[1] * (len(p) + len(r)) + [0] * (longest - len(p) - len(r)) for p, r in rows])
        core = self.model.get_base_model()
        with self.autocast():
            hidden = core.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            picked = [hidden[i, len(p) - 1 : len(p) + len(r) - 1] for i, (p, r) in enumerate(rows)]
            return [core.lm_head(h).float() for h in picked]

    def logprob(self, logits, response):
        torch = self.torch
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(response)[:, None]).sum()

    def reference(self, pairs):
        """log-probabilities of both responses, and of RETAIN the chosen response's distribution."""
        torch, out = self.torch, []
        with torch.no_grad(), self.model.disable_adapter():
            for kind, p, a, b in pairs:
                rows = [(p, a)] if kind == "retain" else [(p, a), (p, b)]
                logits = self.logits(rows)
                sums = [self.logprob(l, r) for l, (_, r) in zip(logits, rows)]
                out.append((sums, torch.log_softmax(logits[0], -1) if kind == "retain" else None))
        return out

    def loss(self, pairs, reference):
        torch, total = self.torch, 0.0
        rows = [(p, r) for kind, p, a, b in pairs for r in ([a] if kind == "retain" else [a, b])]
        logits, at = self.logits(rows), 0
        for (kind, _, a, b), (sums, kept) in zip(pairs, reference):
            if kind == "retain":
                logq = torch.log_softmax(logits[at], -1)
                total = total + (kept.exp() * (kept - logq)).sum(-1).mean()
                at += 1
                continue
            x = self.logprob(logits[at], a) - sums[0]
            y = self.logprob(logits[at + 1], b) - sums[1]
            at += 2
            if kind == "invert":
                total = total - torch.nn.functional.logsigmoid(BETA * (x - y))
            else:
                total = total - torch.nn.functional.logsigmoid(-BETA * x) - torch.nn.functional.logsigmoid(-BETA * y)
        return total

    def parameters(self):
        return [p for p in self.model.parameters() if p.requires_grad]

    def gradient(self):
        torch = self.torch
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters()]
        return torch.cat([g.flatten() for g in grads]).clone()

    def backward(self, pairs, reference):
        self.model.zero_grad()
        self.loss(pairs, reference).backward()


def steps(peer, at_once, repetitions):
    pairs = [long_pair(i) for i in range(at_once)]
    reference = peer.reference(pairs)
    peer.backward(pairs, reference)
    rates = []
    for _ in range(repetitions):
        began = time.time()
        peer.backward(pairs, reference)
        rates.append(count(pairs) / (time.time() - began))
    rates.sort()
    return {"tokens_per_second": rates[len(rates) // 2], "all": rates}


def mini(peer):
    torch = peer.torch
    pairs, marks = [short_pair(i) for i in range(96)], [time.time()]
    reference = peer.reference(pairs)
    marks.append(time.time())
    gold = [("invert", p, a, b) for _, p, a, b in pairs[:64]]
    sums = peer.reference(gold)
    total = 0
    for pair, known in zip(gold, sums):
        peer.backward([pair], [known])
        total = total + peer.gradient()
    for pair, known in zip(pairs, reference):
        if pair[0] != "retain":
            peer.backward([pair], [known])
            torch.dot(total, peer.gradient())
    marks.append(time.time())
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4)
    for pair, known in zip(pairs, reference):
        peer.backward([pair], [known])
        optimizer.step()
    marks.append(time.time())
    phases = [b - a for a, b in zip(marks, marks[1:])]
    return {"seconds": sum(phases), "reference_seconds": phases[0], "impact_seconds": phases[1], "epoch_seconds": phases[2]}


def impact(peer):
    """A gradient per conflicting pair against the gold batch's; the references are known before."""
    pairs = [(("invert", "punish")[i % 2], *short_pair(i)[1:]) for i in range(192)]
    gold = [("invert", *short_pair(3 * (i + 200))[1:]) for i in range(64)]
    known, sums, total = peer.reference(pairs), peer.reference(gold), 0
    began = time.time()
    for pair, sum_ in zip(gold, sums):
        peer.backward([pair], [sum_])
        total = total + peer.gradient()
    middle = time.time()
    for pair, sum_ in zip(pairs, known):
        peer.backward([pair], [sum_])
        peer.torch.dot(total, peer.gradient())
    end = time.time()
    return {"gold_gradient_seconds": middle - began, "per_pair_seconds": end - middle, "seconds": end - began}


def run_peer(arguments):
    case = arguments.case
    peer = Peer(arguments.model, arguments.threads, "bf16" in case)
    before = resource.getrusage(resource.RUSAGE_SELF)
    whole = {"mini": mini, "impact": impact}.get(case)
    figures = whole(peer) if whole else steps(peer, 4 if "four" in case else 1, arguments.repetitions)
    after = resource.getrusage(resource.RUSAGE_SELF)
    figures["cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures["peak_bytes"] = after.ru_maxrss * 1024
    print(json.dumps(figures))


def ours(arguments, case):
    command = [arguments.binary, "bench", "--model", arguments.model, "--learning", case]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run([*command, "--repetitions", str(arguments.repetitions)], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = json.loads(output.stdout)
    if case == "impact":
        figures["seconds"] = figures["gold_gradient_seconds"] + figures["directional_seconds"]
    figures["cpu_seconds"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return figures


def theirs(arguments, case):
    command = [sys.executable, __file__, "--model", arguments.model, "--side", "peer", "--case", case]
    command += ["--threads", str(arguments.threads), "--repetitions", str(arguments.repetitions)]
    output = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--binary", default="target/release/realign")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    cases = "which of the peer's to run; there is also impact, scores of 192 pairs with a gold batch of 64"
    parser.add_argument("--cases", default="pair,pair-bf16,four,four-bf16,mini", help=cases)
    parser.add_argument("--side", choices=["both", "peer"], default="both")
    parser.add_argument("--case", default="pair")
    arguments = parser.parse_args()
    if arguments.side == "peer":
        return run_peer(arguments)
    print("| case | ours | PyTorch | ratio | peak MB, ours / PyTorch |\n|---|---|---|---|---|")
    for case in arguments.cases.split(","):
        whole = case in ("mini", "impact")
        rounds = 1 if whole else arguments.rounds
        for _ in range(rounds):
            a, b = ours(arguments, case.split("-")[0]), theirs(arguments, case)
            key = "seconds" if whole else "tokens_per_second"
            ratio = b[key] / a[key] if whole else a[key] / b[key]
            memory = f"{a['peak_bytes'] / 2**20:.0f} / {b['peak_bytes'] / 2**20:.0f}"
            print(f"| {case}, {key} | {a[key]:.1f} | {b[key]:.1f} | {ratio:.2f} | {memory} |", flush=True)
            print(json.dumps({"case": case, "ours": a, "theirs": b}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
