use super::*;

/// The slow twin: the whole body, parsed.
fn parsed(text: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(value["model"].as_str().unwrap_or_default().to_owned())
}

fn scan(text: &str, piece: usize) -> Result<Scan, ScanError> {
    let mut scan = Scan::default();
    for bytes in text.as_bytes().chunks(piece) {
        scan.read(bytes)?;
    }
    scan.end()?;
    Ok(scan)
}

#[test]
fn the_model_is_found_wherever_it_is() {
    for text in [
        r#"{"model":"a","messages":[]}"#,
        r#" { "messages" : [ {"model": "no", "x": "}\"]{"} ] , "model" : "a@1" , "n":1 } "#,
        r#"{"a":{"model":"x"},"b":"\"model\":\"y\"","model":"z"}"#,
        r#"{"\u006dodel":"esc\"ap\u0065d"}"#,
        r#"{"a":1,"b":true,"c":null,"model":null}"#,
        r#"{"modem":"x","Model":"y"}"#,
        r#"{}"#,
        r#"{"a":[1,2,[3]],"n":1.5e3,"model":""}"#,
    ] {
        for piece in [1, 2, 3, 7, 1000] {
            let scan = scan(text, piece).unwrap();
            let found = scan.found();
            let model = found.map(|f| f.model.clone()).unwrap_or_default();
            assert_eq!(Some(model), parsed(text), "{text} by {piece}");
            let replaced = match found {
                Some(found) => {
                    let (before, after) = (&text[..found.at.start], &text[found.at.end..]);
                    format!("{before}\"new\"{after}")
                }
                None => {
                    let comma = if scan.is_empty { "" } else { "," };
                    let (before, after) = text.split_at(scan.open);
                    format!("{before}\"model\":\"new\"{comma}{after}")
                }
            };
            assert_eq!(parsed(&replaced).as_deref(), Some("new"), "{replaced}");
        }
    }
}

#[test]
fn what_belongs_together_is_found() {
    for (text, belongs, knows_user) in [
        (r#"{"model":"a","user":"u"}"#, Some("u"), true),
        (
            r#"{"prompt_cache_key":"c","user":"\u0075\"x"}"#,
            Some("u\"x"),
            true,
        ),
        (r#"{"user":"","prompt_cache_key":"c"}"#, Some("c"), false),
        (
            r#"{"user":7,"metadata":{"user":"u"},"x":"user"}"#,
            None,
            false,
        ),
        (
            r#"{"user":null,"prompt_cache_key":["c"],"model":"m"}"#,
            None,
            false,
        ),
    ] {
        for piece in [1, 3, 1000] {
            let scan = scan(text, piece).unwrap();
            assert_eq!(
                (scan.belongs(), scan.knows_user()),
                (belongs, knows_user),
                "{text}"
            );
        }
    }
    let long = format!("{{\"user\":\"{}\"}}", "x".repeat(MAX_NAME * 7));
    let cut = scan(&long, 1000).unwrap();
    assert_eq!(cut.belongs().unwrap().len(), MAX_NAME * 6);
}

#[test]
fn what_is_no_request_is_refused() {
    for (text, error) in [
        ("[]", ScanError::NotObject),
        ("", ScanError::NotObject),
        ("\"model\"", ScanError::NotObject),
        (r#"{"model":1}"#, ScanError::NotText),
        (r#"{"model":["a"]}"#, ScanError::NotText),
        (r#"{"model":nil}"#, ScanError::NotText),
        (r#"{"model":"a","x":1,"model":"b"}"#, ScanError::Twice),
        (
            r#"{"model":null,"\u006d\u006f\u0064\u0065\u006c":"b"}"#,
            ScanError::Twice,
        ),
        (r#"{"model":"a""#, ScanError::Unfinished),
        (r#"{"model":"a"#, ScanError::Unfinished),
    ] {
        for piece in [1, 1000] {
            assert_eq!(scan(text, piece).err(), Some(error), "{text}");
        }
    }
}
