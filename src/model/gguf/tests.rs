use super::*;

const F32: u32 = 0;

/// A file of one tensor `t` with two elements; parts of it are replaced by the cases.
#[derive(Clone)]
struct Draft {
    version: u32,
    counts: [u64; 2],
    metadata: Vec<u8>,
    tensors: Vec<u8>,
    data: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

fn tensor(name: &str, dims: &[u64], offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
    bytes.extend(F32.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

fn array(kind: u32, length: u64, values: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &length.to_le_bytes(), values].concat()
}

impl Draft {
    fn new() -> Self {
        Self {
            version: 3,
            counts: [1, 0],
            metadata: Vec::new(),
            tensors: tensor("t", &[2], 0),
            data: 8,
        }
    }

    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.counts[1] += 1;
        self.metadata.extend(entry(key, kind, value));
        self
    }

    fn tensors(mut self, tensors: &[Vec<u8>]) -> Self {
        self.counts[0] = tensors.len() as u64;
        self.tensors = tensors.concat();
        self
    }

    fn counts(mut self, tensors: u64, entries: u64) -> Self {
        self.counts = [tensors, entries];
        self
    }

    fn open(&self) -> Result<(Content, File)> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.counts.iter().flat_map(|count| count.to_le_bytes()));
        bytes.extend(&self.metadata);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32) + self.data, 0);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        std::fs::write(&path, bytes).unwrap();
        open(&path)
    }
}

#[test]
fn a_good_header_is_read() {
    let draft = Draft::new()
        .entry(ALIGNMENT, 4, &32u32.to_le_bytes())
        .entry("a", 8, &text("b"))
        .entry("c", 9, &array(8, 2, &[text("d"), text("e")].concat()));
    let (content, _) = draft.open().unwrap();
    assert_eq!(content.tensor_infos["t"].shape.dims(), [2]);
}

#[test]
fn hostile_headers_are_errors_that_say_why() {
    let new = Draft::new;
    let huge = u64::MAX.to_le_bytes();
    let deep = (0..70).fold(array(0, 0, &[]), |inner, _| array(9, 1, &inner));
    let mut version = new();
    version.version = 4;
    let cases = [
        (version, "version 4"),
        (new().entry(ALIGNMENT, 4, &0u32.to_le_bytes()), "it is 0"),
        (new().entry(ALIGNMENT, 4, &24u32.to_le_bytes()), "it is 24"),
        (
            new().entry(ALIGNMENT, 5, &(-1i32).to_le_bytes()),
            "power of two",
        ),
        (
            new().entry(ALIGNMENT, 10, &32u64.to_le_bytes()),
            "value type is 10",
        ),
        (new().entry(ALIGNMENT, 0, &[0]), "value type is 0"),
        (new().counts(u64::MAX, 0), "number of tensors"),
        (new().counts(100_000, 0), "the file has only"),
        (new().counts(0, u64::MAX), "number of metadata entries"),
        (new().entry("a", 8, &huge), "length of `a`"),
        (
            new().entry("a", 8, &(1u64 << 20).to_le_bytes()),
            "the file has only",
        ),
        (new().entry("a", 9, &array(0, u64::MAX, &[])), "`a`"),
        (
            new().entry("a", 9, &array(6, 1 << 20, &[])),
            "the file has only",
        ),
        (new().entry("a", 9, &deep), "nesting"),
        (new().entry("a", 13, &[]), "value type 13"),
        (
            new().entry("a", 0, &[1]).entry("a", 0, &[1]),
            "`a` is there twice",
        ),
        (
            new().tensors(&[tensor("t", &[2], 0), tensor("t", &[2], 32)]),
            "`t` is there twice",
        ),
        (
            new().tensors(&[tensor("t", &[1 << 40, 1 << 40], 0)]),
            "dimensions",
        ),
        (new().tensors(&[tensor("t", &[0], 0)]), "dimensions"),
        (
            new().tensors(&[tensor("t", &[1; 5], 0)]),
            "number of dimensions",
        ),
        (new().tensors(&[tensor("t", &[3], 0)]), "truncated"),
        (
            new().tensors(&[tensor("t", &[2], u64::MAX - 31)]),
            "truncated",
        ),
        (
            new().tensors(&[tensor("t", &[1], 4)]),
            "multiple of the alignment",
        ),
        (
            new().tensors(&[tensor("t", &[2], 0), tensor("u", &[1], 0)]),
            "overlap",
        ),
    ];
    for (draft, expected) in cases {
        let error = draft.open().expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_header_that_ends_early_is_an_error_wherever_it_ends() {
    let draft = Draft::new().entry("a", 9, &array(8, 1, &text("d")));
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(draft.counts.iter().flat_map(|count| count.to_le_bytes()));
    bytes.extend([draft.metadata, draft.tensors].concat());
    for end in 0..bytes.len() {
        assert!(check_header(&bytes[..end], end as u64).is_err(), "{end}");
    }
    assert!(check_header(&bytes[..], bytes.len() as u64).is_ok());
}
