//! Support for routers that an application nests under one of its own paths, such as `/llm`.

use axum::extract::{MatchedPath, NestedPath};
use axum::http::Extensions;
use serde_json::json;

/// The template of the matched route without the nesting prefix; `None` if no route matched.
pub(crate) fn route(extensions: &Extensions) -> Option<&str> {
    let matched = extensions.get::<MatchedPath>()?.as_str();
    let nested = extensions.get::<NestedPath>();
    let prefix = nested.map_or("", |nested| nested.as_str().trim_end_matches('/'));
    match matched.strip_prefix(prefix) {
        // The root of a nested router has no trailing slash.
        Some("") => Some("/"),
        Some(rest) if rest.starts_with('/') => Some(rest),
        _ => Some(matched),
    }
}

/// The base that the relative URLs of a page at `path` need, if any: on a page at `/llm`, a browser
/// resolves `page.css` to `/page.css`.
pub(crate) fn base(path: &str) -> Option<&str> {
    let (_, last) = path.rsplit_once('/')?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~%".contains(&b);
    // Other characters could break out of the HTML attribute.
    (!last.is_empty() && last.bytes().all(plain)).then_some(last)
}

/// The page with `<base href="{base}/">`.
pub(crate) fn with_base(html: &str, base: &str) -> String {
    let head = format!("<head>\n<base href=\"{base}/\">");
    html.replacen("<head>", &head, 1)
}

/// An OpenAPI document (JSON text of an object) requested at `path`, with a `servers` entry if the
/// routes are nested.
pub(crate) fn with_server(document: String, path: &str) -> String {
    match path.strip_suffix("/openapi.json") {
        Some(prefix) if !prefix.is_empty() => {
            let servers = json!([{ "url": prefix }]);
            document.replacen('{', &format!("{{\"servers\":{servers},"), 1)
        }
        _ => document,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_at_a_path_without_a_slash_names_its_base() {
        for (path, expect) in [
            ("/", None),
            ("/llm", Some("llm")),
            ("/tools/llm", Some("llm")),
            ("/llm/", None),
            ("/a\"b", None),
        ] {
            assert_eq!(base(path), expect, "{path}");
        }
        assert_eq!(
            with_base("<html><head><title>", "llm"),
            "<html><head>\n<base href=\"llm/\"><title>"
        );
    }

    #[test]
    fn a_document_names_the_path_that_it_was_found_under() {
        let document = || "{\"openapi\": \"3.1.0\"}".to_string();
        assert_eq!(with_server(document(), "/openapi.json"), document());
        let nested = with_server(document(), "/llm/openapi.json");
        let nested: serde_json::Value = serde_json::from_str(&nested).unwrap();
        assert_eq!(nested["servers"][0]["url"], "/llm");
        assert_eq!(nested["openapi"], "3.1.0");
    }
}
