//! Files that are no lines of JSON, and what is said of files.

use std::fs;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::super::{Dataset, inspect};

fn load(files: &[(&str, &[u8])]) -> Dataset {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    Dataset::load_dir(dir.path()).unwrap()
}

fn refused(name: &str, text: &str) -> Vec<String> {
    let data = load(&[(name, text.as_bytes())]);
    let shown = data.skipped.iter().map(|line| {
        let shown = line.to_string();
        shown[shown.find(name).unwrap()..].to_owned()
    });
    shown.collect()
}

const ROW: &str = "{\"prompt\":\"p\",\"chosen\":\"a, \\\"b\\\"\",\"rejected\":\"c\"}";

/// Columns of texts as a Parquet file.
fn parquet(columns: &[(&str, &[&str])], compression: Compression) -> Vec<u8> {
    let fields: String = columns
        .iter()
        .map(|(name, _)| format!("required binary {name} (UTF8); "))
        .collect();
    let schema = Arc::new(parse_message_type(&format!("message rows {{ {fields} }}")).unwrap());
    let properties = WriterProperties::builder().set_compression(compression);
    let properties = Arc::new(properties.build());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (_, values) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = values.iter().map(|text| ByteArray::from(*text)).collect();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, None, None)
            .unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn every_form_holds_the_same_pairs() {
    let columns: [(&str, &[&str]); 3] = [
        ("prompt", &["p"]),
        ("chosen", &["a, \"b\""]),
        ("rejected", &["c"]),
    ];
    let data = load(&[
        ("a.jsonl", ROW.as_bytes()),
        ("b.json", format!("[{ROW}, 7]").as_bytes()),
        (
            "c.json",
            format!("{{\"version\":1,\"data\":[{ROW}]}}").as_bytes(),
        ),
        (
            "d.csv",
            b"prompt,chosen,rejected,system\np,\"a, \"\"b\"\"\",c,\n",
        ),
        (
            "e.TSV",
            "\u{feff}prompt\tchosen\trejected\np\t\"a, \"\"b\"\"\"\tc\n".as_bytes(),
        ),
        ("f.ndjson", ROW.as_bytes()),
        ("g.parquet", &parquet(&columns, Compression::SNAPPY)),
        ("h.parquet", &parquet(&columns, Compression::UNCOMPRESSED)),
        // Lines under the name of a JSON text, and one row that is the whole text.
        ("i.json", format!("{ROW}\n{ROW}\n").as_bytes()),
        ("j.json", ROW.replacen(',', ",\n", 1).as_bytes()),
    ]);
    assert_eq!(data.pairs.len(), 1, "{:?}", data.pairs);
    assert_eq!(data.duplicates, 10);
    let skipped: Vec<String> = data.skipped.iter().map(ToString::to_string).collect();
    assert_eq!(skipped.len(), 1, "{skipped:?}");
    assert!(skipped[0].contains("b.json:1: item 2: not a JSON object"));
}

#[test]
fn conversations_in_cells_are_json() {
    let data = load(&[(
        "a.csv",
        b"prompt,chosen,rejected\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"q\"\"}]\",\"[1, 2]\",\"{\"\"name\"\": \"\"x\"\"}\"\n",
    )]);
    assert!(data.skipped.is_empty(), "{:?}", data.skipped);
    let pair = &data.pairs[0];
    assert_eq!(pair.prompt_text(), "q");
    // Answers that are JSON are texts.
    assert_eq!(
        (&*pair.chosen, &*pair.rejected),
        ("[1, 2]", "{\"name\": \"x\"}")
    );
}

#[test]
fn bad_rows_of_tables_and_lists_have_their_lines() {
    let table = "prompt,chosen,rejected\np,a,b\n\"two\nlines\",a,b\nq,a,b,c\nr,\"[{'role': 'assistant'}]\",b\n";
    assert_eq!(
        refused("t.csv", table),
        [
            "t.csv:5: the row has 4 cells and the table 3 columns: put cells with separators or line breaks between quotation marks",
            "t.csv:6: the cell of `chosen` is written as Python shows lists and dictionaries; write it as JSON, with `json.dumps`",
        ]
    );
    let twice = refused("t.csv", "prompt,chosen,chosen\np,a,b\n");
    assert!(
        twice[0].contains("the column `chosen` is there twice"),
        "{twice:?}"
    );
    let list = refused("t.json", &format!("[\n{ROW},\n{{\"prompt\":\"p\"}}\n]"));
    assert!(
        list[0].starts_with("t.json:3: item 2: `chosen` is missing"),
        "{list:?}"
    );
    let cut = refused("t.json", &format!("[\n{ROW},\n{{\"prompt\":"));
    assert_eq!(cut.len(), 1);
    assert!(cut[0].contains("nothing of this file is read"), "{cut:?}");
    let lines = refused("t.json", &format!("{ROW}\n{{\"prompt\":\n{ROW}\n"));
    assert_eq!(
        lines.len(),
        1,
        "one line is broken, the others are read: {lines:?}"
    );
    let splits = refused("t.json", &format!("{{\"train\":[{ROW}],\"test\":[{ROW}]}}"));
    assert!(
        splits[0].contains("the list `test` is not read"),
        "{splits:?}"
    );
}

#[test]
fn a_quotation_mark_that_is_missing_does_not_take_the_file_into_memory() {
    let text = format!(
        "prompt,chosen,rejected\np,a,b\nq,\"{}",
        "x".repeat(super::super::MAX_LINE_BYTES + (1 << 20))
    );
    let lines = refused("t.csv", &text);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("a quotation mark may be missing"),
        "{lines:?}"
    );
    let data = load(&[("t.csv", text.as_bytes())]);
    assert_eq!(data.pairs.len(), 1);
}

#[test]
fn broken_parquet_is_refused() {
    let columns: [(&str, &[&str]); 3] =
        [("prompt", &["p"]), ("chosen", &["a"]), ("rejected", &["c"])];
    let whole = parquet(&columns, Compression::SNAPPY);
    for broken in [&b"PAR1"[..], &whole[..whole.len() - 1]] {
        let data = load(&[("a.parquet", broken), ("b.jsonl", ROW.as_bytes())]);
        assert_eq!((data.pairs.len(), data.skipped.len()), (1, 1));
        assert!(
            data.skipped[0].reason.contains("duckdb"),
            "{}",
            data.skipped[0]
        );
    }
}

#[test]
fn what_is_not_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "a.jsonl",
        "b.jsonl.bak",
        "c.xlsx",
        "d.jsonl.bz2",
        "e.jsonl.zip",
        "pairs",
        "f.txt",
        ".hidden",
        "README.md",
        "LICENSE",
    ];
    for name in names {
        fs::write(dir.path().join(name), ROW).unwrap();
    }
    fs::create_dir(dir.path().join("data")).unwrap();
    let data = Dataset::load_dir(dir.path()).unwrap();
    let unread: Vec<_> = data.unread.iter().map(|p| p.file_name().unwrap()).collect();
    assert_eq!(
        unread,
        [
            "b.jsonl.bak",
            "c.xlsx",
            "d.jsonl.bz2",
            "data",
            "e.jsonl.zip",
            "f.txt",
            "pairs"
        ]
    );
}

#[test]
fn a_report_says_what_was_read_how() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let one = write(
        "a.jsonl",
        format!(
            "{ROW}\n{{\"prompt\":\"Human: q\\nAssistant:\",\"chosen\":\"a\",\"rejected\":\"b\",\"source\":\"x\"}}\n{{}}\n{{}}\n"
        ),
    );
    let two = write(
        "b.csv",
        "prompt,chosen,rejected\np,\"a, \"\"b\"\"\",c\nq,b,a\n".to_owned(),
    );
    let reports = inspect(&[one, two]).unwrap();
    let first = &reports[0];
    assert_eq!((first.rows, first.pairs, first.form), (4, 2, "JSON lines"));
    assert_eq!(
        (first.formats["native"], first.formats["transcript"]),
        (1, 1)
    );
    assert_eq!(first.unused["source"], 1);
    let reasons = first.reasons();
    assert_eq!((reasons.len(), &*reasons[0].1), (1, &[3, 4][..]));
    assert!(reasons[0].0.starts_with("`chosen` is missing"));
    let second = &reports[1];
    assert_eq!((second.duplicates, second.form), (1, "table"));
    assert_eq!(
        second.contradictions.len(),
        1,
        "the transcript says the opposite"
    );
}

#[test]
fn what_a_file_says_twice_is_refused() {
    for (name, text, why) in [
        (
            "a.json",
            format!(r#"{{"data": [{ROW}], "data": []}}"#),
            "`data` is given twice; nothing of this object is read",
        ),
        (
            "a.json",
            r#"[{"prompt":"p","chosen":"a","rejected":"b","prompt":"q"}]"#.to_owned(),
            "`prompt` is given twice",
        ),
        (
            "a.csv",
            "prompt,chosen,rejected\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"p\"\",\"\"content\"\":\"\"q\"\"}]\",a,b"
                .to_owned(),
            "in the cell of `prompt`, `[0].content` is given twice",
        ),
        (
            "a.csv",
            "prompt,chosen,rejected\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"\\ud83d\"\"}]\",a,b"
                .to_owned(),
            "in the cell of `prompt`, `[0].content` has half of a character",
        ),
    ] {
        let refused = refused(name, &text);
        assert!(
            refused.len() == 1 && refused[0].contains(why),
            "{text}: {refused:?}"
        );
    }
}

/// What spreadsheets save where decimals have a comma: semicolons, a mark of the encoding, line ends of Windows.
#[test]
fn a_table_may_have_semicolons_or_tabs_and_line_ends_of_windows() {
    for separator in [",", ";", "\t"] {
        let row = |cells: [&str; 4]| cells.join(separator) + "\r\n";
        let text = [
            "\u{feff}".to_owned() + &row(["prompt", "chosen", "rejected", "notes"]),
            row(["p", "\"a; b, c\"", "d", ""]),
            row(["q", "\"two\r\nlines\"", "e", ""]),
            row(["r", "", "f", "no good one yet"]),
            row(["s", "g", "h", ""]),
        ]
        .concat();
        let data = load(&[("a.csv", text.as_bytes())]);
        assert_eq!(data.pairs.len(), 3, "{separator:?}");
        assert!(data.pairs.iter().any(|pair| pair.chosen == "a; b, c"));
        let refused = refused("a.csv", &text);
        assert!(
            refused.len() == 1 && refused[0].starts_with("a.csv:5: `chosen` is missing"),
            "{refused:?}"
        );
    }
    // A comma in the names is the separator, whatever else is there.
    let data = load(&[("a.csv", b"prompt,chosen,rejected,a;b\np,c;d,r,\n")]);
    assert_eq!(data.pairs[0].chosen, "c;d");
}
