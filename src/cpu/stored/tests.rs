use candle_core::Tensor;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::{bf16, f16};

use super::*;
use crate::PackedWeight;

/// Packed matrices of every type, 21 rows of 512 columns, of bytes that follow a rule.
fn matrices() -> Vec<PackedWeight> {
    use GgmlDType::*;
    let mut all = Vec::new();
    for dtype in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K] {
        let bytes = 21 * 512 / dtype.block_size() * dtype.type_size();
        // Below 64: no two of them are an f16 that is no number.
        let data: Vec<u8> = (0..bytes).map(|i| ((i * 37 + 11) % 64) as u8).collect();
        let storage = QStorage::from_data(data.into(), &Device::Cpu, dtype).unwrap();
        let tensor = QTensor::new(storage, (21, 512)).unwrap();
        all.push(PackedWeight::from_quantized(&tensor).unwrap());
    }
    let values: Vec<f32> = (0..21 * 512).map(|i| (i % 251) as f32 / 8.0).collect();
    let shape = (21, 512);
    let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
    let brains: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
    let floats = [
        Tensor::from_vec(values, shape, &Device::Cpu),
        Tensor::from_vec(halves, shape, &Device::Cpu),
        Tensor::from_vec(brains, shape, &Device::Cpu),
    ];
    all.extend(floats.map(|t| PackedWeight::from_dense(&t.unwrap()).unwrap()));
    all
}

/// A change of how weights are packed changes these bytes, and must count [`LAYOUT`] up, so that
/// no file of the layout before is mapped.
#[test]
fn the_layout_is_that_of_its_number() {
    let bytes: Vec<u8> = matrices().iter().flat_map(|m| m.raw().to_vec()).collect();
    assert_eq!(
        (LAYOUT, hex::encode(&Sha256::digest(bytes)[..8]).as_str()),
        (3, "d2bcb4d33020c624"),
        "the layout of packed weights changed: count `LAYOUT` up"
    );
}

#[test]
fn a_checksum_notices_every_byte_every_length_and_two_of_a_lane() {
    let bytes: Vec<u8> = (0..2_500_000u32).map(|i| (i * 7) as u8).collect();
    let whole = format::sum(&bytes);
    assert_eq!(whole, format::sum(&bytes.clone()));
    for at in [0, 1, 63, 64, 1 << 20, 2_499_999] {
        let mut other = bytes.clone();
        other[at] ^= 0x80;
        assert_ne!(whole, format::sum(&other), "byte {at}");
        // The highest bit of two words of one lane.
        other[(at + 64) % 2_499_000] ^= 0x80;
        assert_ne!(whole, format::sum(&other), "byte {at} and another");
    }
    assert_ne!(whole, format::sum(&bytes[..2_499_999]));
    for part in [1, 63, 1 << 20, (1 << 20) + 17, 2_000_000] {
        let mut sum = format::Sum::default();
        bytes.chunks(part).for_each(|part| sum.add(part));
        assert_eq!(whole, sum.finish(), "in parts of {part}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert_ne!(whole, format::sum(&longer));
}

#[test]
fn encodings_are_read_as_they_are_written_and_others_are_refused() {
    for weight in matrices() {
        let stored = format::Stored::from(weight.encoding);
        let text = serde_json::to_string(&stored).unwrap();
        let read: format::Stored = serde_json::from_str(&text).unwrap();
        assert_eq!(read.encoding(), Some(weight.encoding), "{text}");
    }
    let unknown = r#"{"integer":{"bits":3,"scales":1,"minimum":false,"zero":0,"factored":false}}"#;
    let read: format::Stored = serde_json::from_str(unknown).unwrap();
    assert_eq!(read.encoding(), None);
}

#[test]
fn what_was_used_longest_ago_goes_first_and_the_newest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let cache = WeightsCache {
        directory: dir.path().into(),
        max_bytes: 250,
    };
    let shelf = dir.path().join("9");
    fs::create_dir(&shelf).unwrap();
    let now = realign_core::clock::since_1970();
    let days =
        |days: u64| std::time::SystemTime::UNIX_EPOCH + now - Duration::from_secs(days * 86_400);
    let put = |name: &str, age: u64| {
        let path = shelf.join(name);
        fs::write(&path, [0; 100]).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(days(age)).unwrap();
        path
    };
    let ancient = put("a.weights", 61);
    let old = put("b.weights", 3);
    let young = put("c.weights", 1);
    let newest = put("d.weights", 2);
    let foreign = put("notes.txt", 400);
    evict::to_bound(&cache, &newest);
    assert!(!ancient.exists() && !old.exists());
    assert!(young.exists() && newest.exists() && foreign.exists());
    let none = WeightsCache {
        max_bytes: 0,
        ..cache
    };
    evict::to_bound(&none, &newest);
    assert!(!young.exists() && newest.exists());
}
