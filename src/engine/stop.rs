//! Stop strings, which may arrive split over several tokens.

/// Finds stop strings, and holds back text that may be the start of one.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    /// The stop string belongs to the text.
    included: bool,
    held: String,
    found: Option<String>,
}

/// The result of [`StopMatcher::push`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StopOutcome {
    /// Text that is certain to belong to the response.
    Text(String),
    /// A stop string is complete; this is the rest of the text, and nothing follows.
    Stopped(String),
}

impl StopMatcher {
    /// Watches for these strings; empty ones are ignored. The text ends before the first one, or
    /// after it if stop strings are `included`.
    pub(crate) fn new(stops: &[String], included: bool) -> Self {
        Self {
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            included,
            held: String::new(),
            found: None,
        }
    }

    /// Takes newly decoded text.
    pub(crate) fn push(&mut self, text: &str) -> StopOutcome {
        self.held.push_str(text);
        let found =
            |stop: &String| Some((self.held.find(stop.as_str())?, stop.len(), stop.clone()));
        if let Some((at, len, stop)) = self.stops.iter().filter_map(found).min() {
            self.held
                .truncate(if self.included { at + len } else { at });
            self.found = Some(stop);
            return StopOutcome::Stopped(std::mem::take(&mut self.held));
        }
        let keep = self
            .stops
            .iter()
            .map(|s| partial_match(&self.held, s))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        StopOutcome::Text(std::mem::replace(&mut self.held, rest))
    }

    /// The stop string that was complete.
    pub(crate) fn found(&self) -> Option<&str> {
        self.found.as_deref()
    }

    /// The text held back, when the sequence ends for another reason.
    pub(crate) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Finds a part of the text that repeats an earlier part.
#[derive(Debug)]
pub(crate) struct RepeatMatcher {
    opening: &'static str,
    closing: &'static str,
    parts: Vec<String>,
    open: String,
}

impl RepeatMatcher {
    /// Watches the parts between `opening` and `closing`.
    pub(crate) fn new((opening, closing): (&'static str, &'static str)) -> Self {
        Self {
            opening,
            closing,
            parts: Vec::new(),
            open: String::new(),
        }
    }

    /// Takes newly decoded text. Returns whether a part is complete that equals an earlier one,
    /// apart from white space around it.
    pub(crate) fn push(&mut self, text: &str) -> bool {
        self.open.push_str(text);
        while let Some(at) = self.open.find(self.closing) {
            let before = &self.open[..at];
            let part = before.rsplit(self.opening).next().unwrap_or(before);
            let part = part.trim().to_string();
            self.open.drain(..at + self.closing.len());
            if self.parts.contains(&part) {
                return true;
            }
            self.parts.push(part);
        }
        false
    }
}

/// Length in bytes of the longest suffix of `text` that is a proper prefix of `stop`.
fn partial_match(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|&n| {
            text.is_char_boundary(text.len() - n)
                && stop
                    .as_bytes()
                    .starts_with(&text.as_bytes()[text.len() - n..])
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds pieces; returns the text let through and whether a stop string was found.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        run_with(stops, pieces, false)
    }

    fn run_with(stops: &[&str], pieces: &[&str], included: bool) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut matcher = StopMatcher::new(&stops, included);
        let mut out = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                StopOutcome::Text(text) => out.push_str(&text),
                StopOutcome::Stopped(text) => return (out + &text, true),
            }
        }
        (out + &matcher.flush(), false)
    }

    #[test]
    fn stops_are_found_across_pieces_and_never_leak() {
        for (stops, pieces, text, stopped) in [
            (vec!["END"], vec!["one E", "N", "D two"], "one ", true),
            (vec!["END"], vec!["one E", "N", "C"], "one ENC", false),
            (vec!["\n\n", "."], vec!["a\n", "b. c"], "a\nb", true),
            (vec!["aab"], vec!["aa", "ab"], "a", true),
            (vec![], vec!["all ", "of it"], "all of it", false),
            (vec![""], vec!["all"], "all", false),
            (vec!["é!"], vec!["caf", "é", "!"], "caf", true),
            (vec!["END"], vec!["tail E"], "tail E", false),
        ] {
            assert_eq!(
                run(&stops, &pieces),
                (text.to_string(), stopped),
                "{stops:?} {pieces:?}"
            );
        }
    }

    #[test]
    fn stops_can_be_included() {
        for (stops, pieces, text, stopped) in [
            (vec!["END"], vec!["one E", "N", "D two"], "one END", true),
            (vec!["b", "bc"], vec!["a", "bcd"], "ab", true),
            (vec!["END"], vec!["tail E"], "tail E", false),
        ] {
            let expect = (text.to_string(), stopped);
            assert_eq!(
                run_with(&stops, &pieces, true),
                expect,
                "{stops:?} {pieces:?}"
            );
        }
    }

    #[test]
    fn repeated_parts_are_found() {
        for (pieces, at) in [
            (vec!["Well <a;", " <b;", "\n<a", ";"], Some(3)),
            (vec!["<a; <b; <ab;"], None),
            (vec!["<x;<x;"], Some(0)),
            (vec!["<a;<a"], None),
        ] {
            let mut matcher = RepeatMatcher::new(("<", ";"));
            let found = pieces.iter().position(|piece| matcher.push(piece));
            assert_eq!(found, at, "{pieces:?}");
        }
    }
}
