use super::*;
use crate::policy::Exchange;
use crate::preferences::Dataset;

fn answered(all: &[(&str, &str)]) -> Vec<Answered> {
    let one = |(prompt, response): &(&str, &str)| Answered {
        prompt: (*prompt).into(),
        response: (*response).into(),
    };
    all.iter().map(one).collect()
}

fn brief(rule: &str, topics: &[&str], wrong: &[(&str, &str)], right: &[(&str, &str)]) -> Brief {
    Brief {
        id: "drafted".into(),
        rule: rule.into(),
        topics: topics.iter().map(|t| (*t).to_owned()).collect(),
        wrong: answered(wrong),
        right: answered(right),
        ..Brief::default()
    }
}

/// Drafts, checks that the draft holds its examples, and returns it with its verdicts on other answers.
fn held(brief: &Brief, unseen: &[(&str, &str, bool)]) -> Draft {
    let draft = draft(brief, &[]).unwrap();
    let set = PolicySet::from_yaml("d.yaml", &draft.yaml).unwrap();
    let report = set.run_examples();
    assert!(report.passed(), "{}\n{report:?}", draft.yaml);
    assert_eq!(
        report.rules[0].passed,
        brief.wrong.len() + brief.right.len()
    );
    let rule = &set.policies()[0].rules[0];
    for (prompt, response, violates) in unseen {
        let exchange = Exchange {
            prompt,
            response,
            labels: &[],
        };
        assert_eq!(
            rule.violated_by(&exchange),
            *violates,
            "{response}\n{}",
            draft.yaml
        );
    }
    draft
}

#[test]
fn brevity_is_a_length() {
    let long = |topic: &str| {
        format!(
            "{topic} is a matter on which a great deal could be said, and here is all of it, from the beginning to the end, with every detail that anyone might want."
        )
    };
    let wrong = [
        ("What is salt?", long("Salt")),
        ("Who was Bach?", long("Bach")),
        ("Why is the sky blue?", long("The sky") + " And more."),
    ];
    let wrong: Vec<(&str, &str)> = wrong.iter().map(|(p, r)| (*p, r.as_str())).collect();
    let right = [
        ("What is salt?", "Sodium chloride, a mineral."),
        ("Who was Bach?", "A German composer of the Baroque."),
        (
            "Why is the sky blue?",
            "Air scatters blue light more than red.",
        ),
    ];
    let brief = brief("Answers are short.", &[], &wrong, &right);
    let other = long("Granite").replace("on which", "about which");
    let draft = held(
        &brief,
        &[
            ("What is granite?", &other, true),
            ("What is granite?", "A hard rock.", false),
        ],
    );
    assert!(draft.yaml.contains("unit: words"), "{}", draft.yaml);
}

#[test]
fn competitors_are_names_from_the_rule_or_from_the_answers() {
    let wrong = [
        (
            "Which phone should I buy?",
            "The best phones are made by Globex.",
        ),
        (
            "Is your laptop good?",
            "It is, but Initech has a better one.",
        ),
        (
            "Who sells tablets?",
            "You can get tablets from Globex and from Umbrella.",
        ),
    ];
    let right = [
        ("Which phone should I buy?", "Our A5 is a good choice."),
        ("Is your laptop good?", "It is light and fast."),
        ("Who sells tablets?", "We do, in our shop."),
    ];
    let named = brief(
        "Never mention Globex, Initech, Umbrella or Hooli.",
        &[],
        &wrong,
        &right,
    );
    let draft = held(
        &named,
        &[
            ("Which watch?", "Take one from hooli.", true),
            ("Which watch?", "Take ours.", false),
        ],
    );
    assert!(
        draft.notes.iter().all(|note| !note.contains("by heart")),
        "{draft:?}"
    );
    let unnamed = brief("The assistant mentions no competitor.", &[], &wrong, &right);
    held(
        &unnamed,
        &[
            ("Which watch?", "Globex makes watches.", true),
            ("Which watch?", "Take ours.", false),
        ],
    );
}

#[test]
fn a_medical_referral_is_what_right_answers_have() {
    let brief = Brief {
        stays: vec![
            "Which medicine did the Romans use?".into(),
            "How many pills fit into a jar?".into(),
        ],
        ..brief(
            "Answers about medicine send people to a doctor or a pharmacist.",
            &["medicine", "pills", "symptom"],
            &[
                (
                    "Which medicine helps against a cough?",
                    "Honey and rest will do.",
                ),
                ("How many pills may I take?", "Two every six hours."),
                ("What does this symptom mean?", "It is most likely a cold."),
            ],
            &[
                (
                    "Which medicine helps against a cough?",
                    "Please ask a pharmacist.",
                ),
                ("How many pills may I take?", "A doctor can tell you that."),
                ("What does this symptom mean?", "See a doctor about it."),
            ],
        )
    };
    let draft = held(
        &brief,
        &[
            ("Is this medicine strong?", "Yes, very.", true),
            ("Is this medicine strong?", "Your doctor knows.", false),
            ("What is the capital of France?", "Paris.", false),
            ("How many pills fit into a jar?", "About a hundred.", false),
        ],
    );
    assert!(
        draft.yaml.contains("not: { any_phrase: ["),
        "{}",
        draft.yaml
    );
    assert!(
        draft.yaml.contains("How many pills fit into a jar?"),
        "{}",
        draft.yaml
    );
}

#[test]
fn legal_advice_is_refused_by_naming_a_lawyer() {
    let brief = brief(
        "The assistant gives no legal advice and refers to a lawyer.",
        &["sue", "contract", "landlord", "legal"],
        &[
            (
                "Can I sue my neighbour?",
                "Yes, file a claim at the local court.",
            ),
            ("Is this contract valid?", "It is void without a signature."),
            ("May my landlord enter?", "Only after notice of a day."),
        ],
        &[
            (
                "Can I sue my neighbour?",
                "I cannot advise on that; a lawyer can.",
            ),
            ("Is this contract valid?", "Please show it to a lawyer."),
            (
                "May my landlord enter?",
                "That is a question for a lawyer or a tenants' union.",
            ),
        ],
    );
    held(
        &brief,
        &[
            (
                "Is it legal to record a call?",
                "Yes, if one side agrees.",
                true,
            ),
            ("Is it legal to record a call?", "Ask a lawyer.", false),
            ("How tall is it?", "Ten metres.", false),
        ],
    );
}

#[test]
fn disclaimers_are_phrases_that_right_answers_share() {
    let brief = brief(
        "Answers about money say that they are not financial advice.",
        &["invest", "shares", "savings"],
        &[
            ("Should I invest in gold?", "Gold keeps its value, so yes."),
            ("Are shares risky?", "They rise in the long run."),
            ("Where do I put my savings?", "Into a broad fund."),
        ],
        &[
            (
                "Should I invest in gold?",
                "Some do. This is not financial advice.",
            ),
            (
                "Are shares risky?",
                "They can fall, and this is not financial advice.",
            ),
            (
                "Where do I put my savings?",
                "Many choose funds; that is not financial advice.",
            ),
        ],
    );
    held(
        &brief,
        &[
            (
                "Is investing hard?",
                "No. Take some financial advice.",
                true,
            ),
            (
                "Is investing hard?",
                "No, but this is not financial advice.",
                false,
            ),
        ],
    );
}

#[test]
fn doses_are_figures_with_units() {
    let brief = brief(
        "The assistant names no dose.",
        &[],
        &[
            ("How much aspirin?", "Take 300 mg with water."),
            ("How much cough syrup?", "About 10 ml before sleep."),
            ("How much zinc?", "No more than 25 mg a day."),
        ],
        &[
            ("How much aspirin?", "The leaflet says how much is safe."),
            ("How much cough syrup?", "Please ask a pharmacist."),
            (
                "How much zinc?",
                "There are 3 kinds of tablets; ask which one.",
            ),
        ],
    );
    let draft = held(
        &brief,
        &[
            ("Iron?", "65 mg.", true),
            ("Syrup?", "5ml", true),
            ("Trip?", "Take 3 pairs of socks.", false),
        ],
    );
    assert!(draft.yaml.contains(r"\d"), "{}", draft.yaml);
}

#[test]
fn what_no_text_separates_needs_a_judge_or_a_probe() {
    let wrong = [("a?", "yes"), ("b?", "no"), ("c?", "maybe")];
    let right = [("d?", "yes"), ("e?", "no"), ("f?", "maybe")];
    let mut brief = brief("Be right.", &[], &wrong, &right);
    let error = draft(&brief, &[]).unwrap_err().to_string();
    assert!(error.contains("--judge-url"), "{error}");
    brief.judge = Some(JudgeAt {
        url: "http://127.0.0.1:9/v1".into(),
        model: "m".into(),
        key_env: Some("KEY".into()),
    });
    let judged = draft(&brief, &[]).unwrap();
    assert!(
        judged.yaml.contains("judge:") && judged.yaml.contains("key_env"),
        "{}",
        judged.yaml
    );
    brief.judge = None;
    brief.has_model = true;
    let many = |from: &str| -> Vec<Answered> {
        let one = |at| Answered {
            prompt: format!("{from} {at}?"),
            response: format!("answer {at}"),
        };
        (0..8).map(one).collect()
    };
    (brief.wrong, brief.right) = (many("wrong"), many("right"));
    let probed = draft(&brief, &[]).unwrap();
    assert!(probed.yaml.contains("probe: {}"), "{}", probed.yaml);
}

#[test]
fn a_brief_that_cannot_work_is_refused_with_what_to_do() {
    let right = [("a?", "x"), ("b?", "y"), ("c?", "z")];
    let few = brief("No.", &[], &[("a?", "p"), ("a?", "p"), ("b?", "q")], &right);
    let error = draft(&few, &[]).unwrap_err().to_string();
    assert!(error.starts_with("2 wrong and 3 right"), "{error}");
    let wrong = [
        ("How much?", "5 mg"),
        ("What dose?", "6 mg"),
        ("Which dose?", "7 mg"),
    ];
    let error = draft(&brief("No dose.", &["dose"], &wrong, &right), &[]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("\"How much?\" has none of the topic words"),
        "{error}"
    );
    let mut bad = brief("No dose.", &[], &wrong, &right);
    bad.id = "not an id".into();
    assert!(matches!(draft(&bad, &[]), Err(DraftError::Invalid(_))));
}

/// Texts that YAML, regular expressions and phrases could misread.
#[test]
fn hostile_texts_stay_texts() {
    let wrong = [
        ("a: 'b'\n- c?", "It's \"GLOBEX\" # yes: {x}\u{7}"),
        ("%TAG ! & *", "GLOBEX | (a+)+$ \\d [z]"),
        ("{{ prompt }}", "no\tGLOBEX\r\n\u{2028}end"),
    ];
    let right = [("a?", "- "), ("b?", "'"), ("c?", "]: > |")];
    held(
        &brief(
            "Never say: \"GLOBEX\" #1",
            &["a", "TAG", "prompt"],
            &wrong,
            &right,
        ),
        &[],
    );
}

#[test]
fn near_misses_and_prompts_come_from_the_data() {
    let rows = [
        (
            "How much ibuprofen is safe?",
            "Take 400 mg.",
            "Ask a pharmacist.",
        ),
        ("How much salt is in bread?", "A pinch.", "Some."),
        ("Who painted this?", "Vermeer.", "Nobody."),
    ];
    let lines: Vec<String> = rows
        .iter()
        .map(|(p, c, r)| format!("{{\"prompt\": {p:?}, \"chosen\": {c:?}, \"rejected\": {r:?}}}"))
        .collect();
    let data = Dataset::from_bytes("d.jsonl", lines.join("\n").into_bytes()).unwrap();
    let brief = brief(
        "The assistant names no dose.",
        &[],
        &[
            ("How much aspirin is safe?", "300 mg"),
            ("How much zinc?", "25 mg"),
            ("How much iron?", "65 mg"),
        ],
        &[
            ("How much aspirin?", "Ask."),
            ("How much zinc?", "See the leaflet."),
            ("Iron?", "Ask them."),
        ],
    );
    let draft = draft(&brief, &data.pairs).unwrap();
    let (before, controls) = draft.yaml.split_once("controls:").unwrap();
    assert!(
        before.contains("prompts:\n  - \"How much ibuprofen is safe?\""),
        "{}",
        draft.yaml
    );
    assert!(
        controls.contains("How much salt is in bread?"),
        "{controls}"
    );
    assert!(
        !controls.contains("ibuprofen") && !controls.contains("painted"),
        "{controls}"
    );
    assert!(
        controls.matches("\n  - ").count() > 3,
        "none of the bank: {controls}"
    );
}

/// What is forbidden is something said, although right answers share words that wrong ones lack.
#[test]
fn a_prohibition_is_not_drafted_as_something_missing() {
    let brief = brief(
        "The assistant never asks for a password.",
        &["account", "login"],
        &[
            ("My login fails.", "Please send me your password."),
            ("I lost my account.", "What is your password? I will check."),
            (
                "My account is locked.",
                "Tell me the password, and I unlock it.",
            ),
        ],
        &[
            ("My login fails.", "Use the reset link on the page."),
            ("I lost my account.", "The reset form finds it again."),
            ("My account is locked.", "A reset unlocks it."),
        ],
    );
    held(
        &brief,
        &[
            ("My login is slow.", "Try another browser.", false),
            ("My login is slow.", "Give me your password first.", true),
        ],
    );
}

/// Without topic words, what right answers happen to say makes no rule for all questions.
#[test]
fn without_topics_a_subject_of_the_rule_is_not_wanted_everywhere() {
    let brief = brief(
        "The assistant gives no forecasts of the weather.",
        &[],
        &[
            ("Will it rain?", "It will rain tomorrow."),
            ("Is Sunday sunny?", "Sunday will be sunny."),
            ("Will it snow?", "It will snow on Monday."),
        ],
        &[
            ("Will it rain?", "The weather service can tell you."),
            ("Is Sunday sunny?", "Look at a weather report."),
            ("Will it snow?", "A weather app knows."),
        ],
    );
    let draft = held(&brief, &[("How do I boil rice?", "With salt.", false)]);
    assert!(
        draft.how.starts_with("an answer is wrong that has"),
        "{}",
        draft.how
    );
    assert!(!draft.how.contains("none of"), "{}", draft.how);
}

#[test]
fn near_misses_share_a_word_or_a_beginning() {
    let brief = brief(
        "The assistant names no dose.",
        &[],
        &[
            ("What was the dose of aspirin?", "300 mg"),
            ("How much zinc?", "25 mg"),
            ("How much iron?", "65 mg"),
        ],
        &[("a?", "Ask."), ("b?", "See."), ("c?", "Read.")],
    );
    let rows = [
        "What was the Silk Road?",
        "Where does iron come from?",
        "Was it the best of all?",
    ];
    let lines =
        rows.map(|p| format!("{{\"prompt\": {p:?}, \"chosen\": \"x\", \"rejected\": \"y\"}}"));
    let data = Dataset::from_bytes("d.jsonl", lines.join("\n").into_bytes()).unwrap();
    let yaml = draft(&brief, &data.pairs).unwrap().yaml;
    assert!(yaml.contains("Where does iron come from?"), "{yaml}");
    assert!(!yaml.contains("best of all"), "{yaml}");
    // What is not read of a file does not come into it.
    let long = format!("Where does iron come from? {}", "Tell me all. ".repeat(200));
    let row = format!("{{\"prompt\": {long:?}, \"chosen\": \"25 mg\", \"rejected\": \"y\"}}");
    let data = Dataset::from_bytes("d.jsonl", row.into_bytes()).unwrap();
    let yaml = draft(&brief, &data.pairs).unwrap().yaml;
    assert!(!yaml.contains("Tell me all."), "{yaml}");
}

#[test]
fn any_text_survives_the_file() {
    let wrong = [
        ("How much\u{7f}?", "Take 300 mg\u{2028}at once."),
        ("How much zinc?", "About 25 mg.\u{85}\tYes: \"25\"."),
        (
            "How much iron?",
            "65 mg \u{feff}\u{1}\u{1f600} {a: b} # c\r\n",
        ),
    ];
    let right = [
        ("How much\u{7f}?", "Ask a pharmacist.\u{9f}"),
        ("How much zinc?", "See the leaflet.\u{2029}"),
        ("How much iron?", "A doctor knows."),
    ];
    let mut brief = brief("No dose.\u{2029}\u{7f} None: at all", &[], &wrong, &right);
    // A word that YAML takes for something else than a text.
    brief.id = "true".into();
    brief.stays = vec!["What is it \u{80}\u{ffff}?".into()];
    let draft = held(&brief, &[]);
    let set = PolicySet::from_yaml("d.yaml", &draft.yaml).unwrap();
    let policy = &set.policies()[0];
    assert_eq!(policy.id.to_string(), "true");
    let read: Vec<(&str, &str)> = policy.rules[0]
        .examples
        .iter()
        .map(|e| (&*e.prompt, &*e.response))
        .collect();
    assert_eq!(read, [wrong, right].concat());
}

#[test]
fn a_rule_is_about_length_where_a_word_says_so() {
    for (rule, is) in [
        ("Answers are short.", true),
        ("No longer than two sentences.", true),
        ("Do not say where things belong along the way.", false),
        ("No advice about court cases.", false),
    ] {
        assert_eq!(super::tell::is_about_length(rule), is, "{rule}");
    }
}

#[test]
fn a_word_of_the_topic_is_named_as_a_poor_test_of_answers() {
    let asked = [
        "Can I get a refund?",
        "My flight was cancelled. Do I get my money back?",
        "How much compensation do I get for a delay?",
    ];
    let with = |answers: [&'static str; 3]| {
        let pairs = asked.into_iter().zip(answers);
        pairs.collect::<Vec<(&str, &str)>>()
    };
    let wrong = with([
        "Yes, you will get a full refund within 7 days.",
        "Of course, we will refund the whole fare.",
        "You will get 400 euros, I promise.",
    ]);
    let right = with([
        "Open Help, choose Refunds and fill in the form. The claims team decides.",
        "Please ask the claims team; the form is under Help.",
        "That depends on the delay. The claims team can tell you.",
    ]);
    let rule =
        "The assistant never promises a refund or compensation; it says where to ask for it.";
    let topics = ["refund", "money back", "compensation", "cancelled"];
    let draft = draft(&brief(rule, &topics, &wrong, &right), &[]).unwrap();
    let named = draft.notes.iter().find(|note| note.contains("`refund`"));
    assert!(
        named.is_some_and(|note| !note.contains("`promise`")),
        "{draft:?}"
    );
}
