//! The grammars of calls and formats, matched against whole texts.

use std::sync::Arc;

use super::*;
use crate::api::request;
use realign_engine::grammar::{GrammarState, Grammars};
use realign_model::test_support::test_model;
use realign_model::{CallStyle, Tokenizer};

fn tools(choice: Value, parallel: bool) -> Tools {
    let schema = json!({
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": false,
    });
    let tool = |name| json!({"type": "function", "function": {"name": name, "parameters": schema}});
    let body = json!({
        "tools": [tool("f"), tool("g")], "tool_choice": choice, "parallel_tool_calls": parallel,
    });
    Tools::check(request::read::<ToolFields>(&body).unwrap()).unwrap()
}

/// Whether the whole text can be generated and end there.
fn takes(tokenizer: &Tokenizer, grammars: &Grammars, lark: &str, text: &str) -> bool {
    let mut state = GrammarState::new(&grammars.compile(lark).unwrap());
    let logits = vec![0.0; tokenizer.vocab_size()];
    let mut masked = Vec::new();
    let ids = tokenizer.encode(text, false).unwrap();
    for (i, id) in ids.iter().enumerate() {
        if state.mask(&logits, &mut masked).is_err() || masked[*id as usize].is_infinite() {
            return false;
        }
        if state.accept(*id).unwrap() {
            return i + 1 == ids.len();
        }
    }
    let end = tokenizer.end_of_generation_ids()[0] as usize;
    state.mask(&logits, &mut masked).is_ok() && masked[end].is_finite()
}

#[test]
fn grammars_allow_what_the_choice_says() {
    use CallStyle::{Bare, Tagged};
    let tokenizer = Arc::new(Tokenizer::from_gguf(&test_model()).unwrap());
    let grammars = Grammars::new(tokenizer.clone());
    let call = |name| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{\"a\": 1}}}}\n</tool_call>")
    };
    let one = call("f");
    let two = format!("{one}\n{}", call("g"));
    let other = call("g");
    let others = format!("{other}\n{other}");
    let said = format!("Well < 3.\n{one}");
    let wrong = one.replace('1', "\"x\"");
    let bare = "{\"name\": \"g\", \"parameters\": {\"a\": -7}}";
    let named = json!({"type": "function", "function": {"name": "g"}});
    let json = AnswerFormat::Json {
        schema: json!({"type": "object", "properties": {}, "additionalProperties": false}),
        strict: true,
    };
    let text = AnswerFormat::Text;
    let word = AnswerFormat::Regex("^[a-c]+/\\d$".into());
    let either = AnswerFormat::Choice(vec!["yes".into(), "yes!".into()]);
    let auto = || json!("auto");
    let only = |mode: &str| {
        let function = json!({"type": "function", "function": {"name": "g"}});
        json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [function]}})
    };
    let cases = [
        (
            Tagged,
            auto(),
            true,
            &text,
            vec!["", "Hi <tool>", &one, &two, &said],
            vec![&*wrong, "<tool_call>"],
        ),
        (Tagged, auto(), false, &text, vec!["Hi", &said], vec![&*two]),
        (
            Tagged,
            json!("required"),
            true,
            &text,
            vec![&*one, &two],
            vec!["Hi", &said, &wrong],
        ),
        (
            Tagged,
            named.clone(),
            true,
            &text,
            vec![&*other],
            vec![&*one, &*others],
        ),
        (
            Tagged,
            only("auto"),
            true,
            &text,
            vec!["Hi", &*other],
            vec![&*one, &*two],
        ),
        (
            Tagged,
            only("required"),
            true,
            &text,
            vec![&*other],
            vec!["Hi", &*one, &*two],
        ),
        (
            Tagged,
            auto(),
            true,
            &json,
            vec!["{}", &two],
            vec!["Hi", &said],
        ),
        (
            Bare,
            auto(),
            true,
            &text,
            vec!["Hi {}", bare],
            vec!["{}", "{\"name\": \"h\""],
        ),
        (Bare, named, true, &text, vec![bare], vec!["Hi"]),
        (
            Tagged,
            auto(),
            true,
            &word,
            vec!["ab/7", &one],
            vec!["ab", "ab/7x", &said],
        ),
        (
            Bare,
            auto(),
            true,
            &either,
            vec!["yes", "yes!", bare],
            vec!["no", "yes?"],
        ),
        (Bare, auto(), true, &json, vec!["{}", bare], vec!["Hi"]),
    ];
    for (style, choice, parallel, format, allowed, refused) in cases {
        let lark = grammar(
            &tools(choice.clone(), parallel),
            format,
            style,
            &Efforts::most(Bounds::default()),
        )
        .unwrap()
        .lark;
        for text in allowed {
            let taken = takes(&tokenizer, &grammars, &lark, text);
            assert!(
                taken,
                "{style:?} {choice} {format:?} refuses {text:?}\n{lark}"
            );
        }
        for text in refused {
            let taken = takes(&tokenizer, &grammars, &lark, text);
            assert!(
                !taken,
                "{style:?} {choice} {format:?} allows {text:?}\n{lark}"
            );
        }
    }
}
