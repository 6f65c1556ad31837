//! The configuration file that `realign init` writes: the example with every key commented out, so
//! that a later release's defaults hold, but for the keys that were given.

use super::EXAMPLE;

const HEADER: &str = "\
# Settings of realign. Every key is here and every key is optional. `#key = value` shows a default, `# key = value` an
# example of a key that is unset by default: remove the `#` to set one. The environment variable
# REALIGN_SERVER__PORT=9000 overrides [server] port, and flags override both. `realign doctor` checks the result.
";

/// The text of a `realign.toml` in which the given keys are set. A key of a section is written with a
/// dot (`paths.state`); values are texts. A key that does not exist is left out.
pub fn starter_file(set: &[(&str, &str)]) -> String {
    let mut text = HEADER.to_owned();
    let mut section = String::new();
    for line in EXAMPLE.lines().skip_while(|line| !line.is_empty()) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = format!("{name}.");
        }
        let key = key_of(line);
        let given = key.and_then(|key| {
            let dotted = format!("{section}{key}");
            set.iter().find(|(name, _)| *name == dotted)
        });
        match (key, given) {
            (Some(key), Some((_, value))) => {
                text.push_str(&format!("{key} = {}", toml::Value::from(*value)));
            }
            (Some(_), None) if !line.starts_with('#') => {
                text.push('#');
                text.push_str(line);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

/// The key that a line of the example sets or shows.
fn key_of(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ")?;
    let is_key = |b: u8| b.is_ascii_lowercase() || b == b'_';
    (!name.is_empty() && name.bytes().all(is_key)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, RawConfig, load};

    fn read(text: &str) -> Config {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("realign.toml");
        std::fs::write(&path, text).unwrap();
        Config::resolve(load(Some(&path), &RawConfig::default()).unwrap()).unwrap()
    }

    #[test]
    fn it_changes_no_default_and_shows_every_key() {
        let text = starter_file(&[]);
        assert_eq!(read(&text), Config::resolve(RawConfig::default()).unwrap());
        let shown = |key: &&str| {
            text.contains(&format!("#{key} = ")) || text.contains(&format!("# {key} = "))
        };
        let keys: Vec<&str> = EXAMPLE.lines().filter_map(key_of).collect();
        assert!(keys.len() > 100, "{}", keys.len());
        assert!(keys.iter().all(shown), "{text}");
        let set = |line: &&str| key_of(line).is_some() && !line.starts_with('#');
        assert_eq!(text.lines().find(set), None);
    }

    #[test]
    fn given_keys_are_set_in_their_section() {
        let text = starter_file(&[
            ("model", r#"C:\models\"a".gguf"#),
            ("paths.state", "/var/lib/realign"),
            ("nothing.state", "x"),
        ]);
        let config = read(&text);
        assert_eq!(config.model, r#"C:\models\"a".gguf"#);
        assert_eq!(config.paths.state.to_str(), Some("/var/lib/realign"));
        let rest = Config::resolve(RawConfig::default()).unwrap();
        assert_eq!(config.paths.policies, rest.paths.policies);
        assert_eq!(config.train, rest.train);
    }
}
