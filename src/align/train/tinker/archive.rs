//! The archive of an adapter: a gzipped tar file with PEFT's two files.

use std::io::{self, Read};

use flate2::read::GzDecoder;

/// PEFT's file names.
const CONFIG: &str = "adapter_config.json";
const MODEL: &str = "adapter_model.safetensors";
/// Largest files that are read.
const MAX_CONFIG: u64 = 1 << 20;
const MAX_MODEL: u64 = 8 << 30;
/// Bytes of a header, and what the length of a file is rounded up to.
const BLOCK: u64 = 512;
/// Where a header has the name, the length in octal digits, and the type of what follows.
const NAME: std::ops::Range<usize> = 0..100;
const LENGTH: std::ops::Range<usize> = 124..136;
const TYPE: usize = 156;

/// The bytes of PEFT's two files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Files {
    /// `adapter_config.json`
    pub(super) config: Vec<u8>,
    /// `adapter_model.safetensors`
    pub(super) model: Vec<u8>,
}

/// Reads an archive; files of other names are passed over.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(archive: &[u8]) -> Result<Files, String> {
    let broken = |error: io::Error| format!("its archive cannot be read: {error}");
    let mut tar = GzDecoder::new(archive);
    let mut files = Files::default();
    let mut header = [0u8; BLOCK as usize];
    loop {
        tar.read_exact(&mut header).map_err(broken)?;
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let length = length(&header)?;
        let wanted = match (header[TYPE], file_name(&header)) {
            (b'0' | 0, Some(CONFIG)) => Some((&mut files.config, MAX_CONFIG)),
            (b'0' | 0, Some(MODEL)) => Some((&mut files.model, MAX_MODEL)),
            _ => None,
        };
        let mut left = length.div_ceil(BLOCK) * BLOCK;
        if let Some((file, most)) = wanted {
            if length > most {
                return Err(format!("a file of its archive has {length} bytes"));
            }
            file.clear();
            let got = tar.by_ref().take(length).read_to_end(file);
            left -= got.map_err(broken)? as u64;
        }
        let passed = io::copy(&mut tar.by_ref().take(left), &mut io::sink()).map_err(broken)?;
        if passed < left {
            return Err("its archive ends early".into());
        }
    }
    for (file, name) in [(&files.config, CONFIG), (&files.model, MODEL)] {
        if file.is_empty() {
            return Err(format!("its archive has no {name}"));
        }
    }
    Ok(files)
}

/// The last part of a header's path.
fn file_name(header: &[u8]) -> Option<&str> {
    let name = header[NAME].split(|byte| *byte == 0).next()?;
    std::str::from_utf8(name).ok()?.rsplit('/').next()
}

fn length(header: &[u8]) -> Result<u64, String> {
    let digits = &header[LENGTH];
    // Lengths of eight gigabytes and more are written in another form.
    let text = std::str::from_utf8(digits).unwrap_or_default();
    let text = text.trim_matches(['\0', ' ']);
    let read = u64::from_str_radix(text, 8);
    read.map_err(|_| "a length in its archive is no number".into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    fn entry(name: &str, kind: u8, bytes: &[u8]) -> Vec<u8> {
        let mut entry = vec![0u8; BLOCK as usize];
        entry[..name.len()].copy_from_slice(name.as_bytes());
        entry[LENGTH][..11].copy_from_slice(format!("{:011o}", bytes.len()).as_bytes());
        entry[TYPE] = kind;
        entry.extend_from_slice(bytes);
        entry.resize(entry.len().next_multiple_of(BLOCK as usize), 0);
        entry
    }

    fn packed(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
        for entry in entries {
            gzip.write_all(entry).unwrap();
        }
        gzip.write_all(&[0; 1024]).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn both_files_are_found_beside_others() {
        let archive = packed(&[
            entry("", b'5', b""),
            entry("PaxHeader/a", b'x', b"30 mtime=1.5\n"),
            entry("./adapter_config.json", b'0', b"{}"),
            entry("README.md", b'0', &[b'x'; 700]),
            entry("sub/adapter_model.safetensors", 0, &[7; 513]),
        ]);
        let files = read(&archive).unwrap();
        assert_eq!(files.config, b"{}");
        assert_eq!(files.model, [7; 513]);
    }

    #[test]
    fn broken_archives_say_what_is_wrong() {
        let config = entry("adapter_config.json", b'0', b"{}");
        let missing = read(&packed(std::slice::from_ref(&config))).unwrap_err();
        assert!(missing.contains("no adapter_model"), "{missing}");
        let mut odd = config;
        odd[LENGTH].fill(0xff);
        assert!(read(&packed(&[odd])).unwrap_err().contains("no number"));
        let whole = packed(&[entry("adapter_model.safetensors", b'0', &[1; 2000])]);
        for end in [0, 3, whole.len() / 2] {
            assert!(read(&whole[..end]).is_err());
        }
        assert!(read(b"not gzip").unwrap_err().contains("cannot be read"));
    }
}
