use super::*;

const POLICY: &str = "apiVersion: realign/v1\nid: polite\nversion: '1'\nrules:\n  - id: r\n    violates: \
    { response: { any_phrase: [pharmacist] } }\n";

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["policies", "preferences"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let row =
            r#"{"prompt": "How much ibuprofen?", "chosen": "Take 400 mg.", "rejected": "Ask."}"#;
        std::fs::write(dir.path().join("preferences/d.jsonl"), row).unwrap();
        Self(dir)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn global(&self) -> GlobalArgs {
        GlobalArgs {
            json: true,
            policies: Some(self.at("policies")),
            preferences: Some(self.at("preferences")),
            state: Some(self.at("state")),
            ..GlobalArgs::default()
        }
    }

    fn new_policy(&self, args: &NewArgs) -> Result<(u8, Value), CliError> {
        let mut out = Vec::new();
        let code = with(args, &self.global(), &mut out, None)?;
        Ok((code, serde_json::from_slice(&out).unwrap()))
    }

    fn args(&self) -> NewArgs {
        let all = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        NewArgs {
            rule: Some("The assistant names no dose.".into()),
            questions: all(&["How much aspirin?", "How much zinc?", "How much iron?"]),
            wrong: all(&["Take 300 mg.", "About 25 mg.", "65 mg a day."]),
            right: all(&["Ask a pharmacist.", "See the leaflet.", "A doctor knows."]),
            stays: all(&["How much luggage may I take?"]),
            out: Some(self.at("drafts/d.yaml")),
            ..NewArgs::default()
        }
    }
}

#[test]
fn flags_alone_make_a_draft_that_is_tested_and_measured() {
    let place = Place::new();
    let (code, report) = place.new_policy(&place.args()).unwrap();
    assert_eq!(code, EXIT_OK, "{report}");
    assert_eq!(report["test"]["passed"], true);
    assert_eq!(
        (&report["changes"]["pairs"], &report["changes"]["invert"]),
        (&json!(1), &json!(1))
    );
    let text = std::fs::read_to_string(place.at("drafts/d.yaml")).unwrap();
    assert!(text.starts_with("# yaml-language-server: $schema=policy.schema.json\n"));
    assert!(text.contains("id: \"names-no-dose\"\n"), "{text}");
    assert!(text.contains("How much luggage may I take?"));
    assert!(place.at("drafts").join(SCHEMA_FILE).is_file());
    let error = place.new_policy(&place.args()).unwrap_err().to_string();
    assert!(error.contains("a file that is not there"), "{error}");
    let mut out = Vec::new();
    let again = NewArgs {
        out: Some(place.at("e.yaml")),
        ..place.args()
    };
    let global = GlobalArgs {
        json: false,
        ..place.global()
    };
    with(&again, &global, &mut out, None).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.contains("1 prefer an answer that is now wrong"),
        "{text}"
    );
    assert!(text.contains("realign plan --policies"), "{text}");
}

#[test]
fn gaps_are_all_named_where_nobody_can_be_asked() {
    let place = Place::new();
    let error = place
        .new_policy(&NewArgs::default())
        .unwrap_err()
        .to_string();
    for part in [
        "no terminal",
        "--rule",
        "--wrong (0 of 3)",
        "--right (0 of 3)",
        "--help",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let mut args = place.args();
    args.questions.pop();
    let error = place.new_policy(&args).unwrap_err().to_string();
    assert!(error.contains("3 answers and 2 questions"), "{error}");
    args.questions.truncate(1);
    assert_eq!(place.new_policy(&args).unwrap().0, EXIT_OK);
}

#[test]
fn the_policies_in_force_are_heeded() {
    let place = Place::new();
    std::fs::write(place.at("policies/p.yaml"), POLICY).unwrap();
    let taken = NewArgs {
        id: Some("polite".into()),
        ..place.args()
    };
    let error = place.new_policy(&taken).unwrap_err().to_string();
    assert!(error.contains("--id"), "{error}");
    // A right answer of the draft violates the other policy.
    let (code, report) = place.new_policy(&place.args()).unwrap();
    assert_eq!(code, EXIT_FAILED, "{report}");
    let why = report["against_active"].as_str().unwrap();
    assert!(why.contains("polite"), "{why}");
}

#[test]
fn a_terminal_is_asked_for_what_is_missing_and_again_for_topics_that_do_not_fit() {
    let place = Place::new();
    let lines = [
        "",
        "The assistant names no dose.",
        "dose",
        "How much aspirin?",
        "Take 300 mg.",
        "Ask.",
        "How much zinc?",
        "25 mg",
        "See the leaflet.",
        "How much iron?",
        "65 mg",
        "",
        "A doctor knows.",
        "",
        "",
        "",
        "much, dose",
    ];
    let mut input = std::io::Cursor::new(lines.join("\n"));
    let mut prompts = Vec::new();
    let mut out = Vec::new();
    let args = NewArgs {
        out: Some(place.at("a.yaml")),
        ..NewArgs::default()
    };
    let mut asker = Asker::new(&mut input, &mut prompts);
    let code = with(&args, &place.global(), &mut out, Some(&mut asker)).unwrap();
    let prompts = String::from_utf8(prompts).unwrap();
    assert_eq!(code, EXIT_OK, "{prompts}");
    assert!(
        prompts.contains("none of the topic words (dose)"),
        "{prompts}"
    );
    let text = std::fs::read_to_string(place.at("a.yaml")).unwrap();
    assert!(text.contains("much"), "{text}");
    let mut input = std::io::Cursor::new("A rule.\n");
    let (mut prompts, mut out) = (Vec::new(), Vec::new());
    let mut asker = Asker::new(&mut input, &mut prompts);
    let error = with(&args, &place.global(), &mut out, Some(&mut asker)).unwrap_err();
    assert!(error.to_string().contains("nothing was written"), "{error}");
}

#[test]
fn names_are_made_of_the_words_that_say_something() {
    for (rule, name) in [
        ("The assistant names no dose.", "names-no-dose"),
        ("Answers are short.", "short"),
        ("Это правило", "new-policy"),
        (
            "Never mention Globex, Initech or Umbrella!",
            "never-mention-globex-initech",
        ),
    ] {
        assert_eq!(slug(rule), name);
    }
}
