//! `tojson`: Python's `json.dumps`, with keys in their order.

use std::fmt::Write;

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, Value};

use super::super::budget::{charge_text, weigh};
use super::arguments::bind;
use super::{elements, is_dict, is_list, str_of, text, type_name, wrong};

pub(super) fn register(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", to_json);
}

/// Most spaces of one level.
const MAX_INDENT: usize = 64;

struct Writer {
    out: String,
    indent: Option<String>,
    between: String,
    after_key: String,
    ascii: bool,
    sorted: bool,
}

fn to_json(value: &Value, rest: Rest<Value>) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let given = bind("tojson", &rest, names)?;
    let indent = match given.given(1) {
        None => None,
        Some(text) if text.as_str().is_some() => Some(str_of(text)?),
        Some(width) => {
            let width = usize::try_from(super::arguments::whole(width)?).unwrap_or(0);
            Some(" ".repeat(width.min(MAX_INDENT)))
        }
    };
    let (mut between, mut after_key) = match indent {
        Some(_) => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    if let Some(separators) = given.given(2) {
        let pair = elements(separators)?;
        let [first, second] = pair.as_slice() else {
            return Err(wrong("separators must be a pair of texts"));
        };
        (between, after_key) = (str_of(first)?, str_of(second)?);
    }
    let weight = weigh(value)?;
    let margin = indent.as_ref().map_or(0, String::len) * 8;
    let each = 16 + margin + between.len() + after_key.len();
    charge_text(weight.text.saturating_add(weight.nodes * each as u64) as usize)?;
    let mut writer = Writer {
        out: String::new(),
        indent,
        between,
        after_key,
        ascii: given.flag(0, false),
        sorted: given.flag(3, false),
    };
    writer.value(value, 0)?;
    Ok(writer.out)
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            self.text(text);
            return Ok(());
        }
        match scalar(value) {
            Some(scalar) => self.out.push_str(&scalar),
            None if is_list(value) => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.enclosed('[', ']', depth, &items, |w, item| w.value(item, depth + 1))?;
            }
            None if is_dict(value) => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.enclosed('{', '}', depth, &keys, |w, key| {
                    match (key.as_str(), scalar(key)) {
                        (Some(text), _) => w.text(text),
                        (None, Some(scalar)) => w.text(&scalar),
                        (None, None) => {
                            return Err(wrong(format!(
                                "keys must be str, int, float, bool or None, not {}",
                                type_name(key)
                            )));
                        }
                    }
                    w.out.push_str(&w.after_key);
                    w.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            None => {
                let kind = type_name(value);
                return Err(wrong(format!(
                    "Object of type {kind} is not JSON serializable"
                )));
            }
        }
        Ok(())
    }

    fn enclosed(
        &mut self,
        open: char,
        close: char,
        depth: usize,
        items: &[Value],
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.between);
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 || self.escapes(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    /// Characters for private use stay, although Python escapes them: one of them guards control
    /// literals (`super::super::guard`).
    fn escapes(&self, c: char) -> bool {
        self.ascii && (c as u32) >= 0x7f && !matches!(c, '\u{7f}' | '\u{e000}'..='\u{f8ff}')
    }
}

/// A number or a name; `None` for everything else.
fn scalar(value: &Value) -> Option<String> {
    Some(match value.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool if value.is_true() => "true".to_owned(),
        ValueKind::Bool => "false".to_owned(),
        ValueKind::Number if value.is_integer() => value.to_string(),
        ValueKind::Number => match f64::try_from(value.clone()).ok()? {
            number if number.is_nan() => "NaN".to_owned(),
            f64::INFINITY => "Infinity".to_owned(),
            f64::NEG_INFINITY => "-Infinity".to_owned(),
            number => text::float(number),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_written_as_python_writes_it() {
        let mut environment = Environment::new();
        register(&mut environment);
        let value = Value::from_serialize(
            serde_json::json!({"b": [1, "<é\u{1f600}>"], "a": {}, "c": 1e16, "d": null}),
        );
        let cases = [
            ("", r#"{"b": [1, "<é😀>"], "a": {}, "c": 1e+16, "d": null}"#),
            (
                "ensure_ascii=true, sort_keys=true",
                r#"{"a": {}, "b": [1, "<\u00e9\ud83d\ude00>"], "c": 1e+16, "d": null}"#,
            ),
            (
                "separators=(',', ':')",
                r#"{"b":[1,"<é😀>"],"a":{},"c":1e+16,"d":null}"#,
            ),
            (
                "indent=2",
                "{\n  \"b\": [\n    1,\n    \"<é😀>\"\n  ],\n  \"a\": {},\n  \"c\": 1e+16,\n  \"d\": null\n}",
            ),
        ];
        for (options, expected) in cases {
            let source = format!("{{{{ v|tojson({options}) }}}}");
            let text = environment.render_str(&source, minijinja::context! { v => value.clone() });
            assert_eq!(text.unwrap(), expected, "{options}");
        }
    }
}
