//! What a generation is called on a target.

/// Digits of a generation's id.
const DIGITS: usize = 12;

/// The name of a generation's adapter on every target.
pub fn adapter_name(name: &str, generation: &str) -> String {
    format!("{name}@{generation}")
}

/// Whether a text has the form of a generation's id.
pub fn is_generation(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The generation that an adapter's name on a target refers to, if it is one of this fleet's.
pub(crate) fn generation_of<'a>(name: &str, adapter: &'a str) -> Option<&'a str> {
    let rest = adapter.strip_prefix(name)?.strip_prefix('@')?;
    is_generation(rest).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_fleet_are_taken_for_generations() {
        let id = "0123456789ab";
        assert_eq!(generation_of("m", &adapter_name("m", id)), Some(id));
        for other in [
            "m",
            "m@",
            "m@base",
            "n@0123456789ab",
            "m@0123456789aB",
            "mm@0123456789ab",
        ] {
            assert_eq!(generation_of("m", other), None, "{other}");
        }
    }
}
