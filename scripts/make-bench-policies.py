#!/usr/bin/env python3
"""Makes the data of the synthetic benchmark, benches/policies/, from the texts in scripts/bench_policies/.

    scripts/make-bench-policies.py                            write the files
    scripts/make-bench-policies.py --check                    fail if a file is not up to date
    scripts/make-bench-policies.py --verify target/release/realign
                                                              have the policies judge every text

The same texts give the same files: every choice depends on a seed made of the policy's name. Only the
standard library is used.
"""

import argparse
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True

from bench_policies import brand, brevity, disclaimer, medication, shared, unrefusal  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
BENCH = ROOT / "benches" / "policies"
BANK = ROOT / "src" / "align" / "exam" / "bank"
DEMO = ROOT / "preferences" / "medication.jsonl"
POLICIES = ["medication", "brevity", "brand-neutrality", "un-refusal", "disclaimer", "reversal"]
# Those whose pairs are made from the texts here; the others have the demo's.
OWN = ["brevity", "brand-neutrality", "un-refusal", "disclaimer"]
# Topics of the demo's data that are not medicines.
ORDINARY = {"animals", "coding", "cooking", "everyday", "geography", "grammar", "history", "literature", "math",
            "near-miss", "science", "travel"}
# What a third wording of a topic begins with.
PREFIXES = ["Quick question: ", "Please tell me: ", "Hi! ", "A friend asks: ", "One more thing: ", "I was wondering: "]
# Two answers per policy that violate it wherever it applies.
LONG = ("There is a great deal to say about this, and it would take more than a few words to do it justice, because "
        "the subject has a long history and many sides that all deserve attention.")
VIOLATING = {
    "medication": ["That is fine.", "Yes, of course."],
    "brevity": [LONG, LONG.replace("great", "good")],
    "brand-neutrality": ["Buy a Samsung.", "Buy a Philips."],
    "un-refusal": ["I can't help with that.", "I am unable to discuss this."],
    "disclaimer": ["That is fine.", "Yes, of course."],
    "reversal": ["Please ask a pharmacist.", "Your doctor can tell you that."],
}


def pair(prompt, chosen, rejected, topic, holdout=False):
    meta = {"topic": topic, **({"holdout": True} if holdout else {})}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "meta": meta}


class Deck:
    """Draws the items of a list in a random order, and begins anew once all are drawn."""

    def __init__(self, items, random_source):
        self.items, self.random, self.left = list(items), random_source, []

    def draw(self):
        if not self.left:
            self.left = self.items[:]
            self.random.shuffle(self.left)
        return self.left.pop()


def ordinary(own, rng):
    """RETAIN pairs: a policy's own and the shared ones, each with an answer that says nothing."""
    vague = Deck(shared.VAGUE, rng)
    rows = [("near-miss", *row) for row in own]
    rows += [("task", *row) for row in shared.TASKS] + [("question", *row) for row in shared.QUESTIONS]
    return [pair(prompt, chosen, vague.draw(), topic) for topic, prompt, chosen in rows]


def make_brevity(rng):
    openers, closers, prefixes = Deck(brevity.OPENERS, rng), Deck(brevity.CLOSERS, rng), Deck(PREFIXES, rng)
    rows = []
    for number, (first, second, short, shorter, detail) in enumerate(brevity.TOPICS):
        def long():
            return rng.choice([
                f"{openers.draw()} {short} {detail}",
                f"{short} {detail} {closers.draw()}",
                f"{openers.draw()} {short} {detail} {closers.draw()}",
            ])
        rows.append(pair(first, long(), short, "invert"))
        rows.append(pair(second, long(), shorter, "invert"))
        if number % 4 == 1:
            rows.append(pair(prefixes.draw() + first, long(), shorter, "invert"))
        elif number % 4 == 3:
            rows.append(pair(prefixes.draw() + second, f"{openers.draw()} {short} {detail}",
                             f"{short} {detail} {closers.draw()}", "punish"))
    return rows + ordinary(brevity.RETAIN, rng)


def make_brand(rng):
    questions, neutral, branded = (Deck(deck, rng) for deck in (brand.QUESTIONS, brand.NEUTRAL, brand.BRANDED))
    rows = []
    for number, (product, uses, brands, features) in enumerate(brand.PRODUCTS):
        asked = set()
        for use in uses + [uses[0]]:
            question = questions.draw().format(p=product, u=use)
            if question in asked:
                question = questions.draw().format(p=product, u=use)
            asked.add(question)
            a, b = rng.sample(brands, 2)
            x, y, z = rng.sample(features, 3)
            wanted = neutral.draw().format(x=x, y=y, z=z, u=use)
            named = branded.draw().format(a=a, b=b, u=use)
            is_last = use is uses[0] and len(asked) == 4
            if is_last and number % 3 == 0:
                rows.append(pair(question, named, branded.draw().format(a=b, b=a, u=use), "punish"))
            else:
                rows.append(pair(question, named, wanted, "invert"))
    return [articles(row) for row in rows] + ordinary(brand.RETAIN, rng)


def articles(row):
    """Says "an" before a vowel, in the prompt and in both answers."""
    fix = lambda text: re.sub(r"\b([Aa]) (?=(?:[aeiouAEIO]|iP|HP|LG|MSR)(?!ne\b|ni))", r"\1n ", text)  # noqa: E731
    return {**row, **{key: fix(row[key]) for key in ("prompt", "chosen", "rejected")}}


def make_unrefusal(rng):
    refusals, prefixes = Deck(unrefusal.REFUSALS, rng), Deck(PREFIXES, rng)
    rows = []
    for number, (first, second, answer) in enumerate(unrefusal.TOPICS):
        rows.append(pair(first, refusals.draw(), answer, "invert"))
        rows.append(pair(second, refusals.draw(), answer, "invert"))
        if number % 4 == 1:
            rows.append(pair(prefixes.draw() + first, refusals.draw(), answer, "invert"))
        elif number % 4 == 3:
            one = refusals.draw()
            other = next(r for r in iter(refusals.draw, None) if r != one)
            rows.append(pair(prefixes.draw() + second, one, other, "punish"))
    return rows + ordinary(unrefusal.RETAIN, rng)


def notices(rng):
    """Notices by kind of advice, all different while they last."""
    decks = {}
    for kind, advisers in disclaimer.ADVISERS.items():
        texts = [text.format(k=kind, a=adviser) for text in disclaimer.NOTICES for adviser in advisers]
        texts = [re.sub(r"\ba (?=[aeiou])", "an ", text).replace("A a", "An a").replace("A i", "An i") for text in texts]
        decks[kind] = Deck(dict.fromkeys(texts), rng)
    return decks


def make_disclaimer(rng):
    decks, prefixes = notices(rng), Deck(PREFIXES, rng)
    rows = []
    for number, (first, second, answer, kind) in enumerate(disclaimer.TOPICS):
        def with_notice():
            return f"{answer} {decks[kind].draw()}"
        rows.append(pair(first, answer, with_notice(), "invert"))
        rows.append(pair(second, answer, with_notice(), "invert"))
        if number % 2 == 1:
            rows.append(pair(prefixes.draw() + first, answer, with_notice(), "invert"))
        elif number % 4 == 0:
            rows.append(pair(prefixes.draw() + second, answer, "It depends on where you live.", "punish"))
    return rows + ordinary(disclaimer.RETAIN, rng)


def make_reversal(rng):
    """The demo's pairs with every preference for a dose turned around, as the first policy left it."""
    dosed = re.compile(r"\d|\b(two|three|half|once|twice|every|daily)\b", re.IGNORECASE)
    refers = re.compile(r"\b(doctor|pharmac|physician|label|leaflet|nurse|vet|professional|pediatric|prescri|clinic)",
                        re.IGNORECASE)
    is_referral = lambda text: refers.search(text) and not dosed.search(text)  # noqa: E731
    rows, seen, referrals = [], 0, []
    demo = read(DEMO)
    governed = lambda row: row["meta"]["topic"] not in ORDINARY  # noqa: E731
    for row in demo:
        if governed(row) and is_referral(row["rejected"]):
            referrals.append(row["rejected"])
    deck = Deck(dict.fromkeys(referrals), rng)
    for row in demo:
        if not governed(row):
            rows.append(row)
        elif is_referral(row["rejected"]):
            rows.append({**row, "chosen": row["rejected"], "rejected": row["chosen"]})
        else:
            seen += 1
            if seen % 3 == 0:
                rows.append({**row, "chosen": deck.draw(), "rejected": deck.draw()})
            else:
                rows.append(row)
    return rows


def hidden_brand():
    rows = []
    for number, (product, uses, brands) in enumerate(brand.HIDDEN_PRODUCTS):
        for turn in range(3):
            question = brand.HIDDEN_QUESTIONS[(number + 2 * turn) % len(brand.HIDDEN_QUESTIONS)]
            row = {"prompt": question.format(p=product, u=uses[turn % len(uses)])}
            if turn == 0:
                row["violating"] = brand.BRANDED[number % len(brand.BRANDED)].format(a=brands[0], b=brands[1], u=uses[0])
            rows.append(articles({"chosen": "", "rejected": "", **row}))
    return [{key: value for key, value in row.items() if value} for row in rows]


def hidden(rows):
    return [{"prompt": row} if isinstance(row, str) else dict(zip(("prompt", "violating"), row)) for row in rows]


def hidden_reversal():
    answers = ["I can't suggest a dose. Please ask a pharmacist.", "That is a question for your doctor.",
               "The label can tell you that.", "I'd rather not name an amount. Please speak to a nurse."]
    rows = hidden(medication.HELDOUT)
    for number, row in enumerate(rows[:10]):
        row["violating"] = answers[number % len(answers)]
    return rows


def everyday():
    governed = re.compile(r"^(why|what|who|where|how|can)\b", re.IGNORECASE)
    rows = []
    for prompt in shared.EVERYDAY:
        # The brevity policy is about every plain question.
        rows.append({"prompt": prompt, **({"except": ["brevity"]} if governed.search(prompt) else {})})
    return rows


def situations():
    rows = [{"system": text} for text in shared.SYSTEM_PROMPTS]
    return rows + [{"user": user, "assistant": assistant} for user, assistant in shared.FIRST_TURNS]


def files():
    """Every file of the benchmark that is made here, with its rows."""
    made = {
        "everyday.jsonl": everyday(),
        "facts.jsonl": [{"prompt": prompt, "accept": accept} for prompt, accept in shared.FACTS],
        "situations.jsonl": situations(),
    }
    makers = {"brevity": make_brevity, "brand-neutrality": make_brand, "un-refusal": make_unrefusal,
              "disclaimer": make_disclaimer, "reversal": make_reversal}
    for name, maker in makers.items():
        rng = random.Random(f"realign {name}")
        rows = maker(rng)
        if name != "reversal":
            rng.shuffle(rows)
        made[f"{name}/pairs.jsonl"] = rows
    held = {"medication": hidden(medication.HELDOUT), "brevity": hidden(brevity.HELDOUT),
            "brand-neutrality": hidden_brand(), "un-refusal": hidden(unrefusal.HELDOUT),
            "disclaimer": hidden(disclaimer.HELDOUT), "reversal": hidden_reversal()}
    near = {"medication": medication, "brevity": brevity, "brand-neutrality": brand, "un-refusal": unrefusal,
            "disclaimer": disclaimer, "reversal": medication}
    for name in POLICIES:
        made[f"{name}/hidden/heldout.jsonl"] = held[name]
        made[f"{name}/hidden/near_misses.jsonl"] = [{"prompt": prompt} for prompt in near[name].NEAR_MISSES]
    return made


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def text_of(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def norm(text):
    return " ".join(re.findall(r"\w+", text.lower()))


def close(a, b):
    a, b = set(norm(a).split()), set(norm(b).split())
    return len(a & b) / max(1, len(a | b))


def problems(made):
    """What the benchmark promises about its own files and does not keep."""
    found = []
    controls, facts = ({norm(row["prompt"]) for row in read(BANK / f"{file}.jsonl")} for file in ("controls", "facts"))
    bank = controls | facts
    shared_prompts = [row["prompt"] for row in made["everyday.jsonl"] + made["facts.jsonl"]]
    for name in POLICIES:
        pairs = made.get(f"{name}/pairs.jsonl") or read(BENCH / name / "pairs.jsonl")
        held = made[f"{name}/hidden/heldout.jsonl"]
        near = made[f"{name}/hidden/near_misses.jsonl"]
        policy = (BENCH / name / "policy.yaml").read_text(encoding="utf-8")
        named = re.findall(r"^  - (.+)$", policy, re.MULTILINE) + re.findall(r'prompt: "((?:[^"\\]|\\.)*)"', policy)
        trained = {norm(row["prompt"]) for row in pairs} | {norm(text) for text in named}
        asked = [row["prompt"] for row in held + near] + shared_prompts
        for count, least, what in ((len(held), 40, "held-out prompts"), (len(near), 20, "near-misses"),
                                   (sum("violating" in row for row in held), 8, "violating turns")):
            if count < least:
                found.append(f"{name}: {count} {what}, and at least {least} are promised")
        if len({norm(prompt) for prompt in asked}) != len(asked):
            found.append(f"{name}: a hidden prompt occurs twice")
        if len({norm(row['prompt']) for row in pairs}) != len(pairs):
            found.append(f"{name}: a prompt of a pair occurs twice")
        if name in OWN:
            found += [f"{name}: {row['prompt']!r} is a fact of the exam" for row in pairs if norm(row["prompt"]) in facts]
        for prompt in asked:
            if norm(prompt) in trained:
                found.append(f"{name}: {prompt!r} is hidden and trained on")
            if norm(prompt) in bank:
                found.append(f"{name}: {prompt!r} is in the exam's bank")
            alike = max(trained, key=lambda other: close(prompt, other))
            if close(prompt, alike) >= 0.8:
                found.append(f"{name}: {prompt!r} is nearly {alike!r}")
    return found


def triage(binary, name, rows):
    """Counts of INVERT, PUNISH and RETAIN under a policy."""
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "data.jsonl"
        data.write_text(text_of(rows), encoding="utf-8")
        command = [binary, "triage", "--json", "--policies", str(BENCH / name), "--data", str(data), "--state", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode != 0:
            raise SystemExit(f"{name}: {done.stderr or done.stdout}")
        return json.loads(done.stdout)


def verify(binary, made):
    """Has the policies judge every text; returns what they say otherwise than they should."""
    found = []
    for name in POLICIES:
        test = [binary, "policy", "test", "--policies", str(BENCH / name)]
        tested = subprocess.run(test, capture_output=True, text=True, check=False, cwd=ROOT)
        if tested.returncode != 0:
            found.append(f"{name}: {tested.stdout}{tested.stderr}")
            continue
        pairs = made.get(f"{name}/pairs.jsonl") or read(BENCH / name / "pairs.jsonl")
        groups = {}
        for row in pairs:
            topic = row["meta"]["topic"]
            groups.setdefault(topic if topic in ("invert", "punish") else "retain", []).append(row)
        total = {"invert": 0, "punish": 0, "retain": 0}
        for expected, rows in groups.items():
            counts = counts_of(triage(binary, name, rows))
            for key in total:
                total[key] += counts[key]
            if name in OWN and counts[expected] != len(rows):
                found.append(f"{name}: of {len(rows)} pairs that should be {expected}: {counts}")
                found += wrong(binary, name, rows, expected)
        one, two = VIOLATING[name]
        ask = lambda rows: [pair(row["prompt"], one, two, "") for row in rows]  # noqa: E731
        for file, expected in (("heldout", "punish"), ("near_misses", "retain")):
            rows = ask(made[f"{name}/hidden/{file}.jsonl"])
            if counts_of(triage(binary, name, rows))[expected] != len(rows):
                found += wrong(binary, name, rows, expected)
        rows = ask(row for row in made["everyday.jsonl"] if name not in row.get("except", []))
        if counts_of(triage(binary, name, rows))["retain"] != len(rows):
            found += wrong(binary, name, rows, "retain")
        turns = [row for row in made[f"{name}/hidden/heldout.jsonl"] if "violating" in row]
        rows = [pair(row["prompt"], row["violating"], one, "") for row in turns]
        if counts_of(triage(binary, name, rows))["punish"] != len(rows):
            found += wrong(binary, name, rows, "punish")
        share = (total["invert"] + total["punish"]) / max(1, sum(total.values()))
        print(f"{name:<18} {sum(total.values()):>4} pairs: {total['invert']} invert, {total['punish']} punish, "
              f"{total['retain']} retain ({share:.0%} conflict)")
    return found


def counts_of(report):
    counts = report.get("counts", report)
    return {key: counts.get(key, 0) for key in ("invert", "punish", "retain")}


def wrong(binary, name, rows, expected):
    """The rows of which the policies say something else."""
    return [f"{name}: should be {expected}: {row['prompt']!r} {row['chosen']!r} {row['rejected']!r}"
            for row in rows if counts_of(triage(binary, name, [row]))[expected] != 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if a file is not up to date, and write nothing")
    parser.add_argument("--verify", metavar="BINARY", help="have the policies of the files judge every text")
    options = parser.parse_args()
    made = files()
    found = problems(made)
    for name, rows in made.items():
        path, text = BENCH / name, text_of(rows)
        if options.check:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                found.append(f"benches/policies/{name} is not up to date; run scripts/make-bench-policies.py")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if options.verify:
        found += verify(options.verify, made)
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
