mod bounds;
mod forms;
mod tables;

use std::fs;
use std::path::Path;

use super::collect::Collector;
use super::{Dataset, Message, Pair, Role, split};

fn read(text: &[u8], max_line: usize) -> Dataset {
    let mut collector = Collector::default();
    collector
        .read(Path::new("d.jsonl"), text, max_line)
        .unwrap();
    collector.finish()
}

fn one(line: &str) -> Pair {
    let mut data = read(line.as_bytes(), 1 << 20);
    assert!(data.skipped.is_empty(), "{}\n{line}", data.skipped[0]);
    data.pairs.pop().unwrap()
}

fn shape(pair: &Pair) -> (String, &str, &str) {
    let prompt = pair
        .prompt
        .iter()
        .map(|m| format!("{}:{}", m.role.as_str(), m.content));
    (
        prompt.collect::<Vec<_>>().join("|"),
        &pair.chosen,
        &pair.rejected,
    )
}

#[test]
fn every_format_is_read_as_it_is() {
    let cases: &[(&str, (&str, &str, &str))] = &[
        // Native.
        (
            r#"{"prompt":"Hi","chosen":"A","rejected":"B"}"#,
            ("user:Hi", "A", "B"),
        ),
        (
            r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"Hi"}],"chosen":"A","rejected":"B"}"#,
            ("system:S|user:Hi", "A", "B"),
        ),
        // TRL, explicit and implicit prompt.
        (
            r#"{"prompt":[{"role":"user","content":"Hi"}],"chosen":[{"role":"assistant","content":"A"}],"rejected":[{"role":"assistant","content":"B"}]}"#,
            ("user:Hi", "A", "B"),
        ),
        (
            r#"{"chosen":[{"role":"user","content":"Hi"},{"role":"assistant","content":"A"}],"rejected":[{"role":"user","content":"Hi"},{"role":"assistant","content":"B"}]}"#,
            ("user:Hi", "A", "B"),
        ),
        // TRL with the prompt given, as text, and repeated in both conversations.
        (
            r#"{"prompt":"Hi","chosen":[{"role":"user","content":"Hi"},{"role":"assistant","content":"A"}],"rejected":[{"role":"user","content":"Hi"},{"role":"assistant","content":"B"}]}"#,
            ("user:Hi", "A", "B"),
        ),
        // Anthropic HH, several turns; a mark counts only at the start of a paragraph.
        (
            r#"{"chosen":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Say Human: x\n\nAssistant: A\n\nmore","rejected":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Say Human: x\n\nAssistant: B"}"#,
            ("user:One|assistant:Two|user:Say Human: x", "A\n\nmore", "B"),
        ),
        // ShareGPT.
        (
            r#"{"conversations":[{"from":"system","value":"S"},{"from":"human","value":"Hi"}],"chosen":{"from":"gpt","value":"A"},"rejected":{"from":"gpt","value":"B"}}"#,
            ("system:S|user:Hi", "A", "B"),
        ),
        // PKU-SafeRLHF: better before safer.
        (
            r#"{"prompt":"Hi","response_0":"A","response_1":"B","better_response_id":0,"safer_response_id":1}"#,
            ("user:Hi", "A", "B"),
        ),
        (
            r#"{"prompt":"Hi","response_0":"A","response_1":"B","safer_response_id":1}"#,
            ("user:Hi", "B", "A"),
        ),
        // A transcript as the prompt.
        (
            r#"{"prompt":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant:","chosen":" A","rejected":" B"}"#,
            ("user:One|assistant:Two|user:Three", "A", "B"),
        ),
        // The prompt is the last turn only, and the responses are whole conversations.
        (
            r#"{"prompt":"b","chosen":[{"role":"user","content":"a"},{"role":"assistant","content":"x"},{"role":"user","content":"b"},{"role":"assistant","content":"A"}],"rejected":[{"role":"user","content":"a"},{"role":"assistant","content":"x"},{"role":"user","content":"b"},{"role":"assistant","content":"B"}]}"#,
            ("user:a|assistant:x|user:b", "A", "B"),
        ),
        // Transcripts whose turns begin lines.
        (
            r#"{"prompt":"Human: One\nAssistant: Two\nmore\nHuman: Three\nAssistant:","chosen":" A","rejected":"B"}"#,
            ("user:One|assistant:Two\nmore|user:Three", "A", "B"),
        ),
        (
            r####"{"prompt":"### Instruction:\nOne\n\n### Response:","chosen":"A","rejected":"B"}"####,
            ("user:One", "A", "B"),
        ),
        // A system prompt in a column of its own.
        (
            r#"{"system":"S","question":"Hi","chosen":"A","rejected":"B"}"#,
            ("system:S|user:Hi", "A", "B"),
        ),
        (
            r#"{"system_prompt":"S","prompt":"Hi","response_0":"A","response_1":"B","better_response_id":0}"#,
            ("system:S|user:Hi", "A", "B"),
        ),
        (
            r#"{"instruction":"Shorten","input":"This.","chosen":"A","rejected":"B"}"#,
            ("user:Shorten\n\nThis.", "A", "B"),
        ),
        // OpenAI's preference fine-tuning.
        (
            r#"{"input":{"messages":[{"role":"system","content":"S"},{"role":"user","content":"Hi"}],"tools":[],"parallel_tool_calls":true},"preferred_output":[{"role":"assistant","content":"A"}],"non_preferred_output":[{"role":"assistant","content":"B"}]}"#,
            ("system:S|user:Hi", "A", "B"),
        ),
        // Content as parts.
        (
            r#"{"prompt":[{"role":"user","content":[{"type":"text","text":"H"},{"type":"text","text":"i"}]}],"chosen":[{"role":"assistant","content":[{"type":"text","text":"A"}]}],"rejected":"B"}"#,
            ("user:Hi", "A", "B"),
        ),
    ];
    for (line, (prompt, chosen, rejected)) in cases {
        let pair = one(line);
        assert_eq!(
            shape(&pair),
            (prompt.to_string(), *chosen, *rejected),
            "{line}"
        );
    }
}

#[test]
fn the_oracle_judges_the_last_user_message() {
    let pair = one(
        r#"{"chosen":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant: A","rejected":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant: B"}"#,
    );
    assert_eq!(pair.prompt_text(), "Three");
}

#[test]
fn labels_and_marks_are_kept() {
    let pair = one(
        r#"{"prompt":"p","chosen":"a","rejected":"b","category":"c","meta":{"labels":["x","a"],"chosen_labels":"y","rejected_labels":["z","x"],"holdout":true}}"#,
    );
    assert_eq!(pair.chosen_labels, ["a", "c", "x", "y"]);
    assert_eq!(pair.rejected_labels, ["a", "c", "x", "z"]);
    assert_eq!(pair.holdout, Some(true));

    // What asks for nothing, and what happens anyway.
    one(
        r#"{"prompt":[{"role":"user","content":"p"},{"role":"assistant","content":"x","weight":0},{"role":"user","content":"q"}],"chosen":[{"role":"assistant","content":"a","weight":1,"train":true}],"rejected":"b","split":"train_prefs"}"#,
    );
    one(r#"{"prompt":"p","chosen":"a","rejected":"b","split":"test","holdout":true}"#);

    let pku = one(
        r#"{"prompt":"p","response_0":"a","response_1":"b","is_response_0_safe":false,"is_response_1_safe":true,"response_0_harm_category":{"Theft":true,"Fraud":false},"better_response_id":1}"#,
    );
    assert_eq!(pku.chosen_labels, ["safe"]);
    assert_eq!(pku.rejected_labels, ["Theft", "unsafe"]);
}

#[test]
fn bad_lines_are_reported_and_skipped() {
    let cases: &[(&str, &str)] = &[
        ("{", "not valid JSON"),
        (
            r#"{"prompt":"p","chosen":"a","rejected":"b","chosen":"c"}"#,
            "`chosen` is given twice",
        ),
        (
            r#"{"prompt":[{"role":"user","content":"p","role":"system"}],"chosen":"a","rejected":"b"}"#,
            "`prompt[0].role` is given twice",
        ),
        (
            r#"{"prompt":"p","chosen":"a \ud83d","rejected":"b"}"#,
            "`chosen` has half of a character",
        ),
        (
            r#"{"prompt":"p","chosen":[{"role":"assistant","content":"a","weight":0}],"rejected":"b"}"#,
            "a message in `chosen` has `weight`",
        ),
        (
            r#"{"prompt":"p","chosen":"a","rejected":{"role":"assistant","content":"b","train":false}}"#,
            "a message in `rejected` has `train`",
        ),
        (
            r#"{"prompt":"p","chosen":"[{'role': 'assistant', 'content': 'a'}]","rejected":"b"}"#,
            "`chosen` is a text that shows a list of messages",
        ),
        (
            r#"{"prompt":"[{\"from\": \"human\", \"value\": \"p\"}]","chosen":"a","rejected":"b"}"#,
            "`prompt` is a text that shows a list of messages",
        ),
        (
            r#"{"prompt":"p","chosen":"a","rejected":"b","split":"test_prefs"}"#,
            "`split` is `test_prefs`",
        ),
        (
            r#"{"prompt":"p","chosen":"a","rejected":"b","chosen_rating":1,"rejected_rating":"5"}"#,
            "chosen_rating 1 is not above rejected_rating 5",
        ),
        (
            r#"{"prompt":"p","chosen":"a","rejected":"b","System Prompt":"Be brief."}"#,
            "`System Prompt` is not read; if it is `system_prompt`",
        ),
        (
            r#"{"prompt":"p","chosen":[{"role":"assistant","content":"a","prefix":true}],"rejected":"b"}"#,
            "a message in `chosen` has `prefix`",
        ),
        (
            r#"{"prompt":"p","chosen":"a","rejected":"b","images":["x"]}"#,
            "`images` changes what the pair means",
        ),
        (
            r#"{"prompt":"p","chosen":"a","rejected":"b","tools":[{"f":1}]}"#,
            "`tools` must list functions",
        ),
        (
            r#"{"prompt":"p","chosen":"a","rejected":"b","input":"x"}"#,
            "`input` changes what the pair means",
        ),
        (
            r#"{"prompt":[{"role":"assistant","content":"x","tool_calls":[{"id":"1"}]},{"role":"user","content":"y"}],"chosen":"a","rejected":"b"}"#,
            "has calls that are not",
        ),
        (
            r#"{"system":"S","messages":[{"role":"system","content":"T"},{"role":"user","content":"y"}],"chosen":"a","rejected":"b"}"#,
            "another one",
        ),
        (
            r#"{"system":7,"prompt":"y","chosen":"a","rejected":"b"}"#,
            "`system` must be text",
        ),
        ("[]", "not a JSON object"),
        (r#"{"prompt":"p","chosen":"a"}"#, "`rejected` is missing"),
        (
            r#"{"prompt":"p","chosen":"a","rejected":"a"}"#,
            "are the same",
        ),
        (
            r#"{"prompt":"p","chosen":" ","rejected":"a"}"#,
            "the chosen response is blank",
        ),
        (
            r#"{"prompt":" ","chosen":"b","rejected":"a"}"#,
            "the prompt is blank",
        ),
        (
            r#"{"prompt":[],"chosen":"b","rejected":"a"}"#,
            "no messages",
        ),
        (
            r#"{"prompt":7,"chosen":"b","rejected":"a"}"#,
            "must be text or a list of messages",
        ),
        (
            r#"{"prompt":"p","chosen":7,"rejected":"a"}"#,
            "`chosen` must be text or a list",
        ),
        (
            r#"{"prompt":[{"role":"user"}],"chosen":"b","rejected":"a"}"#,
            "`role` and `content`",
        ),
        (
            r#"{"prompt":[{"role":"user","content":[{"type":"image"}]}],"chosen":"b","rejected":"a"}"#,
            "a part of type `image`",
        ),
        (
            r#"{"prompt":[{"role":"boss","content":"x"}],"chosen":"b","rejected":"a"}"#,
            "the role `boss`",
        ),
        (
            r#"{"messages":[{"role":"assistant","content":"x"}],"chosen":"b","rejected":"a"}"#,
            "the last message of the prompt has the role assistant",
        ),
        (
            r#"{"prompt":"p","chosen":[{"role":"user","content":"q"},{"role":"assistant","content":"b"}],"rejected":"a"}"#,
            "`chosen` must hold one assistant message",
        ),
        (r#"{"chosen":"b","rejected":"a"}"#, "text without a prompt"),
        (
            r#"{"chosen":"\n\nHuman: x","rejected":"\n\nHuman: x"}"#,
            "must end with an assistant message",
        ),
        (
            r#"{"chosen":"\n\nHuman: x\n\nAssistant: a","rejected":"\n\nHuman: y\n\nAssistant: b"}"#,
            "different prompts",
        ),
        (
            r#"{"prompt":"p","chosen":"b","rejected":"a","meta":{"holdout":"yes"}}"#,
            "`meta.holdout` must be true or false",
        ),
        (
            r#"{"prompt":"p","chosen":"b","rejected":"a","meta":{"labels":[1]}}"#,
            "`labels` must list texts only",
        ),
        (
            r#"{"prompt":"p","response_0":"b","response_1":"a"}"#,
            "neither `better_response_id`",
        ),
        (
            r#"{"prompt":"p","response_0":"b","response_1":"a","better_response_id":2}"#,
            "must be 0 or 1",
        ),
    ];
    for (line, expected) in cases {
        let data = read(format!("\n{line}\n").as_bytes(), 1 << 20);
        assert_eq!((data.pairs.len(), data.skipped.len()), (0, 1), "{line}");
        let shown = data.skipped[0].to_string();
        assert!(
            shown.starts_with("d.jsonl:2: ") && shown.contains(expected),
            "{shown}\n{line}"
        );
    }
}

#[test]
fn long_and_undecodable_lines_do_not_spoil_the_next() {
    let good = r#"{"prompt":"p","chosen":"a","rejected":"b"}"#;
    let mut text = b"\xef\xbb\xbf".to_vec();
    text.extend(format!("{good}\n{}\n", "x".repeat(500)).bytes());
    text.extend(b"{\"prompt\":\"\xff\"}\n");
    text.extend(good.replace("\"p\"", "\"q\"").bytes());
    let data = read(&text, 60);
    assert_eq!(data.pairs.len(), 2);
    let shown: Vec<String> = data.skipped.iter().map(ToString::to_string).collect();
    let long = "d.jsonl:2: the line is longer than 60 bytes";
    assert_eq!(shown, [long, "d.jsonl:3: not valid UTF-8 at byte 12"]);
}

#[test]
fn a_line_at_the_bound_is_read() {
    let good = r#"{"prompt":"p","chosen":"a","rejected":"b"}"#;
    for text in [
        good.to_owned(),
        format!("{good}\n"),
        format!("{good}\n{good}\n"),
    ] {
        assert_eq!(read(text.as_bytes(), good.len()).pairs.len(), 1);
        assert!(read(text.as_bytes(), good.len() - 1).pairs.is_empty());
    }
}

#[test]
fn a_data_set_is_its_content() {
    let line = |p: &str| format!("{{\"prompt\":\"{p}\",\"chosen\":\"a\",\"rejected\":\"b\"}}\n");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.jsonl"), line("1") + &line("2")).unwrap();
    fs::write(dir.path().join("b.jsonl"), line("2") + &line("3") + "bad\n").unwrap();
    fs::write(dir.path().join(".c.jsonl"), line("4")).unwrap();
    fs::write(dir.path().join("d.txt"), line("5")).unwrap();
    let data = Dataset::load_dir(dir.path()).unwrap();
    assert_eq!(
        (data.pairs.len(), data.skipped.len(), data.duplicates),
        (3, 1, 1)
    );
    assert!(
        data.skipped[0]
            .to_string()
            .contains("b.jsonl:3: not valid JSON: expected value")
    );

    let turned = read((line("3") + &line("2") + &line("1")).as_bytes(), 1 << 20);
    assert_eq!(turned.digest, data.digest);
    let ids = |d: &Dataset| d.pairs.iter().map(|p| p.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&turned), ids(&data));
    assert_ne!(read(line("1").as_bytes(), 1 << 20).digest, data.digest);

    let missing = Dataset::load_dir(&dir.path().join("none")).unwrap();
    assert_eq!((missing.pairs.len(), missing.skipped.len()), (0, 0));
    // What is there but is no directory is a mistake that must not read as "no data".
    let error = Dataset::load_dir(&dir.path().join("a.jsonl")).unwrap_err();
    assert!(error.to_string().contains("a.jsonl"), "{error}");
}

#[test]
fn a_duplicate_keeps_the_hold_out_mark_of_either_copy() {
    let table = [
        ("null", "true", Some(true)),
        ("null", "false", Some(false)),
        ("true", "false", Some(true)),
        ("null", "null", None),
    ];
    let line = |mark: &str| {
        format!(r#"{{"prompt":"p","chosen":"a","rejected":"b","meta":{{"holdout":{mark}}}}}"#)
            + "\n"
    };
    for (a, b, expected) in table {
        let there = read((line(a) + &line(b)).as_bytes(), 1 << 20);
        let back = read((line(b) + &line(a)).as_bytes(), 1 << 20);
        assert_eq!((there.pairs.len(), there.duplicates), (1, 1), "{a} {b}");
        assert_eq!(
            (there.pairs[0].holdout, back.pairs[0].holdout),
            (expected, expected),
            "{a} {b}"
        );
        assert_eq!(there.digest, back.digest, "{a} {b}");
    }
}

fn pair(prompt: &str, chosen: &str, holdout: Option<bool>) -> Pair {
    let mut pair = one(&format!(
        r#"{{"prompt":"{prompt}","chosen":"{chosen}","rejected":"no"}}"#
    ));
    pair.holdout = holdout;
    pair
}

#[test]
fn a_prompt_is_on_one_side() {
    let mut pairs = Vec::new();
    for i in 0..400 {
        pairs.push(pair(&format!("p{i}"), "a", None));
        pairs.push(pair(&format!("p{i}"), "b", None));
    }
    let parts = split(&pairs, 0.25, 7);
    assert_eq!(parts.train.len() + parts.holdout.len(), 800);
    assert!(
        (150..250).contains(&parts.holdout.len()),
        "{}",
        parts.holdout.len()
    );
    for i in &parts.holdout {
        assert!(parts.holdout.contains(&(i ^ 1)), "both pairs of a prompt");
    }
    assert_eq!(split(&pairs, 0.25, 7), parts);
    assert_ne!(split(&pairs, 0.25, 8), parts);
    assert!(split(&pairs, 0.0, 7).holdout.is_empty());
    assert!(split(&pairs, 1.0, 7).train.is_empty());
    // More data does not move a prompt to the other side.
    let fewer = split(&pairs[..100], 0.25, 7);
    let kept: Vec<usize> = parts.holdout.iter().copied().filter(|i| *i < 100).collect();
    assert_eq!(fewer.holdout, kept);
}

#[test]
fn stated_marks_win() {
    let pairs = [
        pair("p", "a", Some(true)),
        pair("p", "b", None),
        pair("q", "a", Some(false)),
        pair("q", "b", None),
        pair("p", "c", Some(false)),
    ];
    for ratio in [0.0, 1.0] {
        let parts = split(&pairs, ratio, 1);
        assert_eq!((parts.train, parts.holdout), (vec![2, 3, 4], vec![0, 1]));
    }
}

#[test]
fn ids_tell_apart_what_differs() {
    let message = |role, content: &str| Message::new(role, content);
    let user = |content: &str| vec![message(Role::User, content)];
    let id = |prompt: &[Message], a: &str, b: &str, labels: &[String]| {
        super::pair_id(prompt, [(a, labels), (b, &[])])
    };
    let label = ["l".to_owned()];
    let ids = [
        id(&user("p"), "a", "b", &[]),
        id(&user("p"), "b", "a", &[]),
        id(&user("pa"), "", "b", &[]),
        id(&user("p"), "ab", "", &[]),
        id(&user("p"), "a", "b", &label),
        id(&[message(Role::System, "p")], "a", "b", &[]),
    ];
    for (i, a) in ids.iter().enumerate() {
        assert!(ids[i + 1..].iter().all(|b| a != b), "{i}");
    }
}
