//! One dialogue in many forms, and forms that are refused by name.

use sha2::{Digest, Sha256};

use super::{Role, one, read, shape};

const TURNS: &str = r#"{"prompt":[{"role":"user","content":"One"},{"role":"assistant","content":"Two"},{"role":"user","content":"Three"}],"chosen":[{"role":"assistant","content":"A"}],"rejected":[{"role":"assistant","content":"B"}]}"#;

#[test]
fn the_same_dialogue_is_the_same_pair_in_every_form() {
    let rows = [
        r#"{"prompt":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant:","chosen":" A","rejected":" B"}"#,
        r#"{"prompt":"Human: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant: ","chosen":"A","rejected":"B"}"#,
        r#"{"prompt":"Human: One\nAssistant: Two\nHuman: Three\nAssistant:","chosen":"A","rejected":"B"}"#,
        // The assistant's mark is in front of the responses.
        r#"{"prompt":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three","chosen":"\n\nAssistant: A","rejected":"\n\nAssistant: B"}"#,
        r#"{"prompt":"Human: One\n\nAssistant: Two\n\nHuman: Three","chosen":"A","rejected":"B"}"#,
        // The prompt is repeated in the responses.
        r#"{"prompt":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant:","chosen":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant: A","rejected":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant: B"}"#,
        r#"{"prompt":"Three","chosen":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant: A","rejected":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant: B"}"#,
        r#"{"chosen":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant: A","rejected":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant: B"}"#,
        r#"{"chosen":"Human: One\nAssistant: Two\nHuman: Three\nAssistant: A","rejected":"Human: One\nAssistant: Two\nHuman: Three\nAssistant: B"}"#,
        // Other marks.
        r#"{"prompt":"User: One\nAssistant: Two\nUser: Three\nAssistant:","chosen":"A","rejected":"B"}"#,
        r#"{"prompt":"USER: One\n\nASSISTANT: Two\n\nUSER: Three\n\nASSISTANT:","chosen":"A","rejected":"B"}"#,
        r####"{"prompt":"### Human: One\n### Assistant: Two\n### Human: Three\n### Assistant:","chosen":"A","rejected":"B"}"####,
        r####"{"prompt":"### Instruction:\nOne\n\n### Response:\nTwo\n\n### Instruction:\nThree\n\n### Response:\n","chosen":"A","rejected":"B"}"####,
        r#"{"prompt":"<|im_start|>user\nOne<|im_end|>\n<|im_start|>assistant\nTwo<|im_end|>\n<|im_start|>user\nThree<|im_end|>\n<|im_start|>assistant\n","chosen":"A<|im_end|>\n","rejected":"B<|im_end|>"}"#,
        // Earlier turns in a column of their own, and line breaks of Windows.
        r#"{"instruction":"Three","input":"","history":[["One","Two"]],"chosen":"A","rejected":"B"}"#,
        r#"{"prompt":"Human: One\r\n\r\nAssistant: Two\r\n\r\nHuman: Three\r\n\r\nAssistant:","chosen":"A","rejected":"B"}"#,
        // In another column, and in another format.
        r#"{"question":"Human: One\nAssistant: Two\nHuman: Three\nAssistant:","chosen":"A","rejected":"B"}"#,
        r#"{"prompt":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant:","response_0":" A","response_1":" B","better_response_id":0}"#,
        r#"{"prompt":"\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant:","responses":[" B"," A"],"scores":[1,2]}"#,
        // As messages.
        r#"{"input":{"messages":[{"role":"user","content":"One"},{"role":"assistant","content":"Two"},{"role":"user","content":"Three"}]},"preferred_output":[{"role":"assistant","content":"A"}],"non_preferred_output":[{"role":"assistant","content":"B"}]}"#,
        r#"{"conversations":[{"from":"human","value":"One"},{"from":"gpt","value":"Two"},{"from":"human","value":"Three"}],"chosen":{"from":"gpt","value":"A"},"rejected":{"from":"gpt","value":"B"}}"#,
        r#"{"prompt":[{"role":"user","content":[{"type":"text","text":"One"}]},{"role":"assistant","content":"Two"},{"role":"user","content":[{"type":"input_text","text":"Th"},{"type":"text","text":"ree"}]}],"chosen":"A","rejected":"B"}"#,
        // UltraFeedback repeats the chosen conversation in `messages`.
        r#"{"prompt":"Three","messages":[{"role":"user","content":"One"},{"role":"assistant","content":"Two"},{"role":"user","content":"Three"},{"role":"assistant","content":"A"}],"chosen":[{"role":"user","content":"One"},{"role":"assistant","content":"Two"},{"role":"user","content":"Three"},{"role":"assistant","content":"A"}],"rejected":[{"role":"user","content":"One"},{"role":"assistant","content":"Two"},{"role":"user","content":"Three"},{"role":"assistant","content":"B"}],"score_chosen":8.5,"score_rejected":7.0}"#,
    ];
    let expected = one(TURNS);
    assert_eq!(
        shape(&expected),
        ("user:One|assistant:Two|user:Three".to_owned(), "A", "B")
    );
    for row in rows {
        let pair = one(row);
        assert_eq!(shape(&pair), shape(&expected), "{row}");
        assert_eq!(pair.id, expected.id, "{row}");
    }
}

/// Verdicts are remembered by id, so ids of what was read before must stay.
#[test]
fn ids_stay_what_they_were() {
    let pair = one(r#"{"prompt":"p","chosen":"a","rejected":"b"}"#);
    let mut hasher = Sha256::new();
    let text = |hasher: &mut Sha256, text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    // One message; each response has no labels.
    hasher.update(1u64.to_le_bytes());
    text(&mut hasher, "user");
    text(&mut hasher, "p");
    for response in ["a", "b"] {
        text(&mut hasher, response);
        hasher.update(0u64.to_le_bytes());
    }
    assert_eq!(pair.id.0, hex::encode(hasher.finalize()));
}

#[test]
fn system_prompts_are_part_of_the_pair() {
    let row = |system: &str| {
        one(&format!(
            r#"{{{system}"prompt":"q","chosen":"A","rejected":"B"}}"#
        ))
    };
    let none = row("");
    assert_eq!(row(r#""system":"","#).id, none.id);
    assert_eq!(row(r#""system":null,"#).id, none.id);
    let pirate = row(r#""system":"Be a pirate.","#);
    assert_ne!(pirate.id, none.id);
    assert_ne!(pirate.id, row(r#""system":"Be brief.","#).id);
    assert_eq!(pirate.id, row(r#""system_prompt":"Be a pirate.","#).id);
    let message = one(
        r#"{"prompt":[{"role":"system","content":"Be a pirate."},{"role":"user","content":"q"}],"chosen":"A","rejected":"B"}"#,
    );
    assert_eq!(pirate.id, message.id);
    // What precedes the first turn of a transcript.
    for text in [
        r#"Be a pirate.\n\nHuman: q\n\nAssistant:"#,
        r#"System: Be a pirate.\n\nHuman: q\n\nAssistant:"#,
        r#"System: Be a pirate.\nUser: q\nAssistant:"#,
    ] {
        let pair = one(&format!(
            r#"{{"prompt":"{text}","chosen":" A","rejected":" B"}}"#
        ));
        assert_eq!(pirate.id, pair.id, "{text}");
    }
    let data = read(
        b"{\"system\":\"S\",\"prompt\":\"q\",\"chosen\":\"A\",\"rejected\":\"B\"}\n{\"system\":\"T\",\"prompt\":\"q\",\"chosen\":\"A\",\"rejected\":\"B\"}\n",
        1 << 20,
    );
    assert_eq!((data.pairs.len(), data.duplicates), (2, 0));
}

#[test]
fn what_only_looks_like_a_transcript_is_text() {
    for text in [
        "Human: a short history",
        "What does `Human:` mean?",
        "Explain:\\n\\nAssistant: yes",
        "User: and Assistant: are roles",
        "Translate\\nHuman: hello",
    ] {
        let row = format!(r#"{{"prompt":"{text}","chosen":" A","rejected":"B"}}"#);
        let pair = one(&row);
        assert_eq!(pair.prompt.len(), 1, "{text}");
        assert_eq!(pair.prompt[0].content, text.replace("\\n", "\n"));
        assert_eq!(pair.chosen, " A", "plain responses are kept as they are");
    }
    // An answer that is a dialogue about something else is an answer.
    let pair = one(
        r#"{"prompt":"Write a dialogue","chosen":"Human: hi\n\nAssistant: hello","rejected":"B"}"#,
    );
    assert_eq!(pair.chosen, "Human: hi\n\nAssistant: hello");
}

#[test]
fn functions_and_their_results_are_part_of_the_prompt() {
    let pair = one(
        r#"{"prompt":[{"role":"user","content":"Hi"},{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"save","arguments":"{\"n\":1}"}}]},{"role":"tool","tool_call_id":"c1","content":"1"},{"role":"user","content":"so?"}],"tools":[{"name":"save","parameters":{}}],"chosen":"A","rejected":"B"}"#,
    );
    let roles: Vec<Role> = pair.prompt.iter().map(|m| m.role).collect();
    assert_eq!(roles, [Role::User, Role::Assistant, Role::Tool, Role::User]);
    assert_eq!(
        pair.prompt[1].calls()[0]["function"]["arguments"]["n"],
        1,
        "arguments are an object, as templates read them"
    );
    assert_eq!(
        super::super::functions(&pair.prompt)[0]["function"]["name"],
        "save"
    );
    assert_eq!(pair.prompt_text(), "so?");
    // ShareGPT's form of the same, without ids.
    let from = one(
        r#"{"conversations":[{"from":"human","value":"Hi"},{"from":"function_call","value":"{\"name\":\"save\",\"arguments\":{\"n\":1}}"},{"from":"observation","value":"1"}],"chosen":{"from":"gpt","value":"A"},"rejected":{"from":"gpt","value":"B"}}"#,
    );
    assert_eq!(from.prompt[1].calls()[0]["function"]["name"], "save");
    assert_eq!(from.prompt[2].role, Role::Tool);
}

#[test]
fn responses_may_call_functions() {
    let row = |city: &str| {
        one(&format!(
            r#"{{"input":{{"messages":[{{"role":"user","content":"Weather?"}}],"tools":[{{"type":"function","function":{{"name":"weather"}}}}]}},"preferred_output":[{{"role":"assistant","tool_calls":[{{"type":"function","function":{{"name":"weather","arguments":"{{\"city\":\"{city}\"}}"}}}}]}}],"non_preferred_output":[{{"role":"assistant","content":"No idea."}}]}}"#
        ))
    };
    let pair = row("Oslo");
    assert_eq!(
        pair.chosen,
        "<tool_call>\n{\"name\":\"weather\",\"arguments\":{\"city\":\"Oslo\"}}\n</tool_call>"
    );
    let called = pair.calling(&pair.chosen).unwrap();
    assert_eq!((called.content.as_str(), called.calls().len()), ("", 1));
    assert_eq!(pair.calling(&pair.rejected).unwrap().calls().len(), 0);
    assert_ne!(pair.id, row("Rome").id);
    let plain = one(r#"{"prompt":"p","chosen":"a","rejected":"b"}"#);
    assert!(plain.calling(&plain.chosen).is_none());
}

#[test]
fn rows_without_a_preference_are_refused_by_name() {
    let cases = [
        (
            r#"{"prompt":"p","completion":"a","label":true}"#,
            "KTO, unpaired",
        ),
        (
            r#"{"prompt":"p","completion":"a"}"#,
            "supervised fine-tuning",
        ),
        (
            r#"{"instruction":"p","input":"","output":"a"}"#,
            "supervised fine-tuning",
        ),
        (
            r#"{"messages":[{"role":"user","content":"p"},{"role":"assistant","content":"a"}]}"#,
            "supervised fine-tuning",
        ),
        (
            r#"{"prompt":"p","winner":"a","loser":"b"}"#,
            "the row has `prompt`, `winner`, `loser`",
        ),
        // TRL's implicit prompt as plain text.
        (
            r#"{"chosen":"The sky is blue.","rejected":"The sky is green."}"#,
            "does not say where the prompt ends",
        ),
        (
            r#"{"prompt":"p","question":"q","chosen":"a","rejected":"b"}"#,
            "`prompt` and `question` say different things",
        ),
        (
            r#"{"prompt":"b","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"x"},{"role":"user","content":"b"}],"chosen":"A","rejected":"B"}"#,
            "`prompt` and `messages` say different things",
        ),
        (
            r#"{"prompt":"[INST] hi [/INST]","chosen":"a","rejected":"b"}"#,
            "a chat template wrote it",
        ),
        (
            r#"{"prompt":[{"role":"user","content":[{"type":"text","text":"what?"},{"type":"image_url","image_url":{"url":"x"}}]}],"chosen":"a","rejected":"b"}"#,
            "a part of type `image_url`",
        ),
        (
            r#"{"prompt":"p","chosen":[{"role":"assistant","content":"a","reasoning_content":"hm"}],"rejected":"b"}"#,
            "has `reasoning_content`",
        ),
        (
            r#"{"prompt":"\n\nHuman: q\n\nAssistant: I","chosen":"a","rejected":"b"}"#,
            "the last message of the prompt has the role assistant",
        ),
        (
            r#"{"prompt":"p","chosen":"a","rejected":"b","history":"earlier"}"#,
            "`history` changes what the pair means",
        ),
        (
            r#"{"prompt":"p","chosen":"a","rejected":"b","holdout":"yes"}"#,
            "`holdout` must be true or false",
        ),
    ];
    for (row, expected) in cases {
        let data = read(row.as_bytes(), 1 << 20);
        assert_eq!((data.pairs.len(), data.skipped.len()), (0, 1), "{row}");
        let reason = &data.skipped[0].reason;
        assert!(reason.contains(expected), "{reason}\n{row}");
    }
}

#[test]
fn a_pair_wins_over_scored_responses_and_input_is_a_prompt() {
    let pair = one(
        r#"{"prompt":"p","chosen":"a","rejected":"b","completions":[{"response":"x","overall_score":1},{"response":"y","overall_score":2}]}"#,
    );
    assert_eq!(shape(&pair), ("user:p".to_owned(), "a", "b"));
    let pair = one(r#"{"system":"S","input":"q","chosen":"a","rejected":"b"}"#);
    assert_eq!(shape(&pair), ("system:S|user:q".to_owned(), "a", "b"));
    let held = one(r#"{"prompt":"p","chosen":"a","rejected":"b","holdout":true}"#);
    assert_eq!(held.holdout, Some(true));
}
