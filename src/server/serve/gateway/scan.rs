//! Finds the field `model` of a JSON object while its bytes arrive, and looks at nothing else.
//!
//! What follows is only watched for a second `model`: engines take the last of two, which would be a
//! way around the generation that was leased.

/// Longest key that is looked at: `model` written with nothing but escapes.
const MAX_KEY: usize = 30;
/// Longest name of a model, or of a user, that is read.
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
    /// In a string that tells requests which belong together.
    Belongs,
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
    key: Key,
    found: Option<Found>,
    /// Values of `user` and of `prompt_cache_key`.
    belongs: [Option<String>; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Model,
    Belongs(usize),
    Other,
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
            key: Key::Other,
            found: None,
            belongs: [None, None],
        }
    }
}

impl Scan {
    /// What was found so far.
    pub(super) fn found(&self) -> Option<&Found> {
        self.found.as_ref()
    }

    /// What tells which requests belong together, as far as it was read: `user`, else
    /// `prompt_cache_key`, which many users may share.
    pub(super) fn belongs(&self) -> Option<&str> {
        let known = self.belongs.iter().flatten();
        known.map(String::as_str).find(|key| !key.is_empty())
    }

    /// Whether nothing that is still to come changes [`Self::belongs`].
    pub(super) fn knows_user(&self) -> bool {
        self.belongs[0]
            .as_ref()
            .is_some_and(|user| !user.is_empty())
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
            (Place::Other | Place::Belongs, _) => self.other(byte),
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
        let most = match self.place {
            Place::Model | Place::Belongs => MAX_NAME * 6,
            _ => MAX_KEY + 1,
        };
        let is_read = matches!(self.place, Place::Key | Place::Model | Place::Belongs);
        if is_read && self.text.len() < most {
            self.text.push(byte);
        }
        Ok(())
    }

    fn end_string(&mut self) -> Result<(), ScanError> {
        match self.place {
            Place::Key => {
                self.key = match self.decoded().as_deref() {
                    Some("model") => Key::Model,
                    Some("user") => Key::Belongs(0),
                    Some("prompt_cache_key") => Key::Belongs(1),
                    _ => Key::Other,
                };
                if self.key == Key::Model && self.found.is_some() {
                    return Err(ScanError::Twice);
                }
                self.place = Place::Colon;
            }
            Place::Model => {
                let model = self.decoded().ok_or(ScanError::NotText)?;
                self.find(model, self.offset + 1);
                self.place = Place::Key;
            }
            Place::Belongs => {
                if let Key::Belongs(which) = self.key {
                    self.belongs[which] = self.decoded();
                }
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
        if let (Key::Belongs(_), b'"') = (self.key, byte) {
            self.place = Place::Belongs;
            self.begin_string();
            return Ok(());
        }
        if self.key == Key::Model {
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
mod tests;
