//! Templates that would take the process with them.

use std::time::{Duration, Instant};

use super::super::{ChatError, ChatMessage, ChatTemplate};
use super::loaded;
use crate::tokenizer::Tokenizer;

fn render(source: &str, tokenizer: &Tokenizer) -> Result<String, ChatError> {
    let template = ChatTemplate::new(source, tokenizer)?;
    template.render(&[ChatMessage::user("hello")], true)
}

#[test]
fn hostile_templates_are_refused_when_they_are_loaded() {
    let (tokenizer, _) = loaded();
    let ns = "{% set ns = namespace(s='xxxxxxxx', l=[1, 2]) %}";
    let cases = [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".into(),
            "steps",
        ),
        (
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(),
            "call themselves",
        ),
        (
            "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".into(),
            "call themselves",
        ),
        ("{{ 'x' * 99999999 }}".into(), "bytes of text"),
        ("{% set a = 'x' * 10**9 %}".into(), "bytes of text"),
        ("{{ ('x' * 99999999)|length }}".into(), "bytes of text"),
        ("{{ ([1] * 10**18)|list }}".into(), "elements"),
        ("{{ 5 in [1] * 10**18 }}".into(), "elements"),
        ("{{ [1]|batch(10**12, 'x') }}".into(), "elements"),
        ("{{ [1]|slice(10**9, 'x') }}".into(), "elements"),
        ("{{ 'a\nb'|indent(10**12) }}".into(), "bytes of text"),
        ("{{ 'a\nb'|indent(width=10**12) }}".into(), "bytes of text"),
        (
            "{{ range(99999)|join('x' * 9999999) }}".into(),
            "bytes of text",
        ),
        (
            "{{ ('x' * 9999999).join(range(99999)|map('string')) }}".into(),
            "bytes of text",
        ),
        (
            "{{ ('a' * 999999).replace('a', 'b' * 999999) }}".into(),
            "bytes of text",
        ),
        (
            "{{ ('a' * 999999)|replace('a', 'b' * 999999) }}".into(),
            "bytes of text",
        ),
        ("{{ '%999999999999d'|format(1) }}".into(), "bytes of text"),
        ("{{ '{:>999999999999}'.format(1) }}".into(), "bytes of text"),
        (
            format!("{ns}{{% for i in range(60) %}}{{% set ns.s = ns.s ~ ns.s %}}{{% endfor %}}"),
            "bytes of text",
        ),
        (
            format!("{ns}{{% for i in range(60) %}}{{% set ns.s = ns.s + ns.s %}}{{% endfor %}}"),
            "bytes of text",
        ),
        (
            format!("{ns}{{% for i in range(60) %}}{{% set ns.l = ns.l + ns.l %}}{{% endfor %}}"),
            "elements",
        ),
        (
            format!(
                "{ns}{{% for i in range(60) %}}{{% set ns.l = [ns.l, ns.l] %}}{{% endfor %}}{{{{ ns.l }}}}"
            ),
            "elements",
        ),
        (
            format!("{ns}{{% for i in range(9999) %}}{{% set ns.l = [ns.l] %}}{{% endfor %}}"),
            "deep",
        ),
        (
            format!(
                "{{% set x %}}{{% for i in range(99999) %}}{}{{% endfor %}}{{% endset %}}",
                "y".repeat(9999)
            ),
            "bytes of text",
        ),
        (
            format!(
                "{{% for i in range(99999) %}}{}{{% endfor %}}",
                "y".repeat(9999)
            ),
            "bytes of text",
        ),
        (format!("{{{{ {}1 }}}}", "1+".repeat(50_000)), "tokens"),
        (
            format!("{{{{ 'a'{} }}}}", "|lower".repeat(50_000)),
            "tokens",
        ),
        (
            format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(50_000)),
            "elif",
        ),
        (" ".repeat((1 << 20) + 1), "more than 1048576 bytes"),
        ("\n".repeat(60_000), "lines"),
    ];
    for (source, expected) in cases {
        let begun = Instant::now();
        let short: String = source.chars().take(90).collect();
        let error = render(&source, &tokenizer).expect_err(&short);
        assert!(matches!(error, ChatError::Exceeded(_)), "{short}: {error}");
        // On a slow machine time runs out first.
        let text = error.to_string();
        let late = expected == "steps" && text.contains("takes longer than");
        assert!(late || text.contains(expected), "{short}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{short}");
    }
}

#[test]
fn a_namespace_inside_itself_is_an_error() {
    let (tokenizer, _) = loaded();
    let source = "{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns }}";
    let error = render(source, &tokenizer).unwrap_err().to_string();
    assert!(error.contains("namespace"), "{error}");
    let endless = "{{ 'abc'.count('') }}";
    assert_eq!(render(endless, &tokenizer).unwrap(), "4");
}

#[test]
fn checks_change_no_meaning() {
    let (tokenizer, _) = loaded();
    let cases = [
        (
            "{{ 2 * 3 }} {{ 2.0 * 3 }} {{ 'ab' * 2 }} {{ [1] * 2 }} {{ -2 * 3 ** 2 }}",
            "6 6.0 abab [1, 1] -18",
        ),
        (
            "{% macro m(a, b=2) %}{{ a * b }}{% endmacro %}{{ m(4) }}{{ m(*[1, 5]) }}{{ m(**{'a': 3}) }}",
            "856",
        ),
        (
            "{% set ns = namespace(x=1) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
            "4",
        ),
        (
            "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% else %}none{% endfor %}",
            "02",
        ),
        (
            "{% for i in [1, [2, [3]]] recursive %}{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}{% endif %}{% endfor %}",
            "1(2(3))",
        ),
        (
            "{% for i in [1, 2] %}{% with a = i %}{% set x %}{{ a }}{% break %}{% endset %}{% endwith %}{% endfor %}b{% for i in [1, 2] %}{% with %}{% continue %}{% endwith %}{% endfor %}c",
            "bc",
        ),
        (
            "{{ 'a' if messages and not false else 'b' }}{{ none or 'c' }}{{ 1 < 2 < 3 }}",
            "acTrue",
        ),
        (
            "{% set x %}<{{ 'y' }}>{% endset %}{{ x ~ x|length }}{% filter upper %}z{% endfilter %}",
            "<y>3Z",
        ),
        (
            "{{ messages[0:]|length }}{{ 'a-b'.split('-')|join('+') }}{{ 'x'|indent(2, true) }}",
            "1a+b  x",
        ),
        (
            "{{ '%s-%03d'|format('a', 7) }}{{ '{}'.format(3) }}{{ 2 in [1, 2] }}{{ [3]|select('in', [3])|list }}",
            "a-0073True[3]",
        ),
        (
            "{% macro m() %}[{{ caller(1) }}]{% endmacro %}{% call(a) m() %}{{ a }}{% endcall %}",
            "[1]",
        ),
        (
            "{% for m in messages %}{%- generation -%} {{ m.content }} {% endgeneration %}!{% endfor %}",
            "hello !",
        ),
    ];
    for (source, expected) in cases {
        let text = render(source, &tokenizer).unwrap_or_else(|e| panic!("{source}: {e}"));
        assert_eq!(text.to_lowercase(), expected.to_lowercase(), "{source}");
    }
}

/// minijinja's own slices panicked on some of these.
#[test]
fn no_slice_or_index_panics() {
    let (tokenizer, _) = loaded();
    let bounds = [
        "",
        "0",
        "1",
        "-1",
        "7",
        "-7",
        "9223372036854775807",
        "-9223372036854775808",
        "'a'",
    ];
    let values = [
        "[]",
        "[1]",
        "[1, 2, 3]",
        "''",
        "'aé'",
        "(1, 2)",
        "{}",
        "none",
        "x",
        "range(3)",
    ];
    let mut source = String::new();
    for value in values {
        for start in bounds {
            for stop in bounds {
                for step in bounds {
                    let expression = format!("{{{{ ({value})[{start}:{stop}:{step}] }}}}");
                    let template = ChatTemplate::new(&expression, &tokenizer);
                    let rendered = template.and_then(|template| template.render(&[], true));
                    let error = rendered.err().map(|error| error.to_string());
                    let failed = error.filter(|error| error.contains("engine failed"));
                    assert_eq!(failed, None, "{expression}");
                    source = expression;
                }
            }
            if !start.is_empty() {
                let expression = format!("{{{{ ({value})[{start}] }}}}");
                let _ = render(&expression, &tokenizer);
            }
        }
    }
    assert!(source.starts_with("{{ (range(3))["));
}

#[test]
fn a_long_conversation_is_well_within_the_bounds() {
    let (tokenizer, template) = loaded();
    let messages: Vec<ChatMessage> = (0..4000)
        .map(|i| ChatMessage::user(format!("{i} {}", "word ".repeat(200))))
        .collect();
    let text = template.render(&messages, true).unwrap();
    assert!(text.len() > 4_000_000);
    let growing = "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m] %}\
                   {% endfor %}{{ ns.l|length }}";
    let growing = ChatTemplate::new(growing, &tokenizer).unwrap();
    assert_eq!(growing.render(&messages[..500], true).unwrap(), "500");
}
