//! Stop strings, which may arrive split over several tokens.

/// Finds stop strings, and holds back text that may be the start of one.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

/// The result of [`StopMatcher::push`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StopOutcome {
    /// Text that is certain to belong to the response.
    Text(String),
    /// A stop string is complete; this text came before it, and nothing follows.
    Stopped(String),
}

impl StopMatcher {
    /// Watches for these strings; empty ones are ignored.
    pub(crate) fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
        }
    }

    /// Takes newly decoded text.
    pub(crate) fn push(&mut self, text: &str) -> StopOutcome {
        self.held.push_str(text);
        if let Some(at) = self
            .stops
            .iter()
            .filter_map(|s| self.held.find(s.as_str()))
            .min()
        {
            self.held.truncate(at);
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

    /// The text held back, when the sequence ends for another reason.
    pub(crate) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
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
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut matcher = StopMatcher::new(&stops);
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
}
