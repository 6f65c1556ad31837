//! Finds the field `model` of a JSON object while its bytes arrive, and looks at nothing else.
//!
//! What follows is only watched for a second `model`: engines take the last of two, which would be a
//! way around the generation that was leased.

/// Longest key that is looked at: `model` written with nothing but escapes.
const MAX_KEY: usize = 30;
/// Longest name of a model that is read.
const MAX_NAME: usize = 1024;

/// Why the bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScanError {
    /// It begins with something else than an object.
    #[error("the request body must be a JSON object")]
    NotObject,
    /// `model` is something else.
    #[error("`model` must be a string")]
    NotText,
    /// There are two.
    #[error("`model` is given twice")]
    Twice,
    /// It ends in the middle.
    #[error("the request body is not valid JSON: it ends too early")]
    Unfinished,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The model that is asked for; empty if none is.
    pub(super) model: String,
    /// The bytes that its value takes.
    pub(super) at: std::ops::Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the object.
    Start,
    /// Where a key or the end comes.
    Key,
    /// Behind a key.
    Colon,
    /// Where a value comes.
    Value,
    /// In a value of the object, which is none of interest.
    Other,
    /// In the value of `model`.
    Model,
    /// Behind the object.
    End,
}

/// A look at bytes that arrive piece by piece.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    place: Place,
    /// Open brackets within the value at hand.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The key or the value at hand, as it is written.
    text: Vec<u8>,
    /// Bytes before the next one.
    offset: usize,
    /// Where the value of `model` begins.
    from: usize,
    /// Behind the object's bracket, and whether anything is in it.
    pub(super) open: usize,
    pub(super) is_empty: bool,
    is_model: bool,
    found: Option<Found>,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            place: Place::Start,
            depth: 0,
            in_string: false,
            escaped: false,
            text: Vec::new(),
            offset: 0,
            from: 0,
            open: 0,
            is_empty: true,
            is_model: false,
            found: None,
        }
    }
}

impl Scan {
    /// What was found so far.
    pub(super) fn found(&self) -> Option<&Found> {
        self.found.as_ref()
    }

    /// Looks at the next bytes.
    ///
    /// # Errors
    /// [`ScanError`].
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        for byte in bytes {
            self.byte(*byte)?;
            self.offset += 1;
        }
        Ok(())
    }

    /// There are no more bytes.
    ///
    /// # Errors
    /// [`ScanError::Unfinished`].
    pub(super) fn end(&self) -> Result<(), ScanError> {
        match self.place {
            Place::End => Ok(()),
            Place::Start => Err(ScanError::NotObject),
            _ => Err(ScanError::Unfinished),
        }
    }

    fn byte(&mut self, byte: u8) -> Result<(), ScanError> {
        // No JSON has it, but UTF-16 does, which some engines would read.
        if byte == 0 {
            return Err(ScanError::NotObject);
        }
        if self.in_string {
            return self.in_string(byte);
        }
        if byte.is_ascii_whitespace() && self.place != Place::Model {
            return Ok(());
        }
        match (self.place, byte) {
            (Place::Start, b'{') => {
                self.place = Place::Key;
                self.open = self.offset + 1;
            }
            (Place::Start, _) => return Err(ScanError::NotObject),
            (Place::Key, b'"') => {
                self.is_empty = false;
                self.begin_string();
            }
            (Place::Key, b'}') => self.place = Place::End,
            (Place::Key, b',') | (Place::End, _) => {}
            (Place::Colon, b':') => self.place = Place::Value,
            // Whatever this is, the target says what is wrong with it.
            (Place::Key | Place::Colon, _) => {}
            (Place::Value, _) => return self.begin_value(byte),
            (Place::Other, _) => self.other(byte),
            (Place::Model, _) => return self.literal(byte),
        }
        Ok(())
    }

    fn begin_string(&mut self) {
        self.in_string = true;
        self.escaped = false;
        self.text.clear();
    }

    fn in_string(&mut self, byte: u8) -> Result<(), ScanError> {
        if self.escaped {
            self.escaped = false;
        } else if byte == b'\\' {
            self.escaped = true;
        } else if byte == b'"' {
            self.in_string = false;
            return self.end_string();
        }
        let most = if self.place == Place::Model {
            MAX_NAME * 6
        } else {
            MAX_KEY + 1
        };
        if matches!(self.place, Place::Key | Place::Model) && self.text.len() < most {
            self.text.push(byte);
        }
        Ok(())
    }

    fn end_string(&mut self) -> Result<(), ScanError> {
        match self.place {
            Place::Key => {
                self.is_model = self.decoded().is_some_and(|key| key == "model");
                if self.is_model && self.found.is_some() {
                    return Err(ScanError::Twice);
                }
                self.place = Place::Colon;
            }
            Place::Model => {
                let model = self.decoded().ok_or(ScanError::NotText)?;
                self.find(model, self.offset + 1);
                self.place = Place::Key;
            }
            Place::Other if self.depth == 0 => self.place = Place::Key,
            _ => {}
        }
        Ok(())
    }

    /// The string at hand.
    fn decoded(&self) -> Option<String> {
        let quoted = [b"\"", self.text.as_slice(), b"\""].concat();
        serde_json::from_slice(&quoted).ok()
    }

    fn find(&mut self, model: String, to: usize) {
        let at = self.from..to;
        self.found = Some(Found { model, at });
    }

    fn begin_value(&mut self, byte: u8) -> Result<(), ScanError> {
        if self.is_model {
            self.from = self.offset;
            self.place = Place::Model;
            return match byte {
                b'"' => {
                    self.begin_string();
                    Ok(())
                }
                b'n' => {
                    self.text = vec![byte];
                    Ok(())
                }
                _ => Err(ScanError::NotText),
            };
        }
        self.place = Place::Other;
        self.depth = 0;
        self.other(byte);
        Ok(())
    }

    /// `null`, which stands for no model.
    fn literal(&mut self, byte: u8) -> Result<(), ScanError> {
        self.text.push(byte);
        if !b"null".starts_with(&self.text) {
            return Err(ScanError::NotText);
        }
        if self.text.len() == 4 {
            self.find(String::new(), self.offset + 1);
            self.place = Place::Key;
        }
        Ok(())
    }

    fn other(&mut self, byte: u8) {
        match byte {
            b'"' => self.begin_string(),
            b'{' | b'[' => self.depth += 1,
            b'}' if self.depth == 0 => self.place = Place::End,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    self.place = Place::Key;
                }
            }
            b',' if self.depth == 0 => self.place = Place::Key,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
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
}
