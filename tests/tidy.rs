//! Conventions that a reviewer should not have to check.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the source tree is readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn under(dir: &str) -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    sources(Path::new(dir), &mut paths);
    assert!(!paths.is_empty(), "{dir} has sources");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("UTF-8");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn no_file_outgrows_a_reader() {
    for (path, text) in under("src").into_iter().chain(under("tests")) {
        let lines = text.lines().count();
        assert!(
            lines <= 600,
            "{} has {lines} lines: split it",
            path.display()
        );
    }
}

#[test]
fn nothing_unfinished_is_marked_in_the_sources() {
    for (path, text) in under("src") {
        for mark in ["todo!(", "unimplemented!(", "TODO", "FIXME"] {
            assert!(!text.contains(mark), "{}: {mark}", path.display());
        }
    }
}

/// The crates of the workspace with their descriptions and imports, as a Markdown table in the
/// order of their dependencies.
fn code_map() -> String {
    let output = std::process::Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{output:?}");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let root = metadata["workspace_root"].as_str().expect("a root");
    let mut crates: Vec<Crate> = metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| Crate::read(package, root))
        .collect();
    crates.sort();
    let depth = |start: &Crate| depth(start, &crates);
    let mut ordered: Vec<&Crate> = crates.iter().collect();
    ordered.sort_by_key(|c| (depth(c), c.name.clone()));
    let mut table =
        String::from("| crate | folder | what it holds | imports |\n| --- | --- | --- | --- |\n");
    for c in ordered {
        let imports = if c.imports.is_empty() {
            "–".into()
        } else {
            c.imports.join(", ")
        };
        table += &format!(
            "| `{}` | `{}` | {} | {imports} |\n",
            c.name, c.folder, c.what
        );
    }
    table
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    name: String,
    folder: String,
    what: String,
    imports: Vec<String>,
}

impl Crate {
    fn read(package: &serde_json::Value, root: &str) -> Self {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_string();
        let manifest = text("manifest_path");
        let folder = manifest.trim_start_matches(root).trim_start_matches('/');
        let folder = folder.trim_end_matches("Cargo.toml").trim_end_matches('/');
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        let own = dependencies.iter().filter(|d| d["kind"].is_null());
        let mut imports: Vec<String> = own
            .filter_map(|d| d["name"].as_str()?.strip_prefix("realign-"))
            .map(String::from)
            .collect();
        imports.sort();
        let name = text("name");
        Self {
            name: name.strip_prefix("realign-").unwrap_or(&name).into(),
            folder: if folder.is_empty() { "." } else { folder }.into(),
            what: text("description"),
            imports,
        }
    }
}

fn depth(of: &Crate, crates: &[Crate]) -> usize {
    let import = |name: &String| crates.iter().find(|c| c.name == *name);
    let below = of.imports.iter().filter_map(import);
    below.map(|c| depth(c, crates) + 1).max().unwrap_or(0)
}

/// The map in ARCHITECTURE.md matches `cargo metadata`. Run with `UPDATE_CODE_MAP=1` to rewrite it.
#[test]
fn the_code_map_is_what_cargo_says() {
    const FILE: &str = "ARCHITECTURE.md";
    let text = fs::read_to_string(FILE).expect("the page is there");
    let (begin, end) = ("<!-- code map: begin -->\n", "<!-- code map: end -->");
    let (before, rest) = text.split_once(begin).expect("where the map begins");
    let (found, after) = rest.split_once(end).expect("where the map ends");
    let expected = code_map();
    if std::env::var_os("UPDATE_CODE_MAP").is_some() {
        let whole = format!("{before}{begin}{expected}{end}{after}");
        return fs::write(FILE, whole).expect("the page can be written");
    }
    assert_eq!(
        found, expected,
        "run `UPDATE_CODE_MAP=1 cargo test --test integration code_map`"
    );
}
