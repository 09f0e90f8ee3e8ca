//! The checker against good traces and every way to spoil one.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

type Record = (u32, u32, u16, u16);

const GOOD: [Record; 4] = [(0, 64, 0, 0), (1, 4096, 1, 0), (0, 0, 1, 0), (2, 8, 0, 0)];

fn bytes(objects: u32, threads: u32, events: u64, records: &[Record]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for field in [VERSION, objects, threads] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(events.to_le_bytes());
    for (object, size, thread, zero) in records {
        bytes.extend(object.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend(thread.to_le_bytes());
        bytes.extend(zero.to_le_bytes());
    }
    bytes
}

fn good() -> Vec<u8> {
    bytes(3, 2, 4, &GOOD)
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn complaint(bytes: Vec<u8>) -> String {
    let complaint = read(bytes).expect_err("must be refused");
    assert!(!complaint.contains('\n'), "{complaint}");
    complaint
}

#[test]
fn a_good_trace_passes_unchanged_packed_or_not() {
    assert_eq!(read(good()), Ok(good()));
    assert_eq!(read(compressed(&good())), Ok(good()));
    let whole = good();
    let (one, two) = whole.split_at(30);
    let frames = [compressed(one), compressed(two)].concat();
    assert_eq!(read(frames), Ok(good()));
    let skippable = [
        &0x184D_2A53u32.to_le_bytes()[..],
        &3u32.to_le_bytes(),
        b"xyz",
    ]
    .concat();
    assert_eq!(read([skippable, compressed(&good())].concat()), Ok(good()));
}

#[test]
fn the_header_must_make_sense() {
    let spoilt = |at: usize, value: u8| {
        let mut bytes = good();
        bytes[at] = value;
        complaint(bytes)
    };
    assert!(spoilt(0, b'X').contains("not an allocation trace"));
    assert!(spoilt(4, 2).contains("version 2"));
    assert!(spoilt(8, 0).contains("0 objects"));
    assert!(spoilt(8, 4).contains("4 objects, but the records allocate 3"));
    assert!(spoilt(8, 1).contains("at most two"));
    assert!(spoilt(8, 5).contains("at least one"));
    assert!(spoilt(12, 0).contains("0 threads"));
    assert!(spoilt(14, 2).contains("threads, must be"));
    assert!(spoilt(16, 0).contains("nothing to replay"));
    assert!(spoilt(23, 255).contains("at most two"));
    assert!(complaint(Vec::new()).contains("empty"));
    assert!(complaint(good()[..20].to_vec()).contains("ends after 20 of 24"));
    assert!(complaint(b"hello".to_vec()).contains("not an allocation trace"));
}

#[test]
fn each_record_is_checked_and_named() {
    let spoilt = |index: usize, record: Record| {
        let mut records = GOOD;
        records[index] = record;
        complaint(bytes(3, 2, 4, &records))
    };
    let cases = [
        (spoilt(0, (0, 0, 0, 0)), 0, "never allocated"),
        (spoilt(1, (0, 8, 0, 0)), 1, "which is live"),
        (spoilt(3, (0, 8, 0, 0)), 3, "used once"),
        (spoilt(3, (0, 0, 0, 0)), 3, "second time"),
        (spoilt(2, (3, 8, 0, 0)), 2, "object 3, but the header has 3"),
        (spoilt(2, (2, 8, 2, 0)), 2, "thread 2, but the header has 2"),
        (spoilt(2, (0, 0, 0, 9)), 2, "last field is 9"),
    ];
    for (complaint, index, what) in cases {
        let place = format!(
            "record {index} (counted from 0, byte offset {})",
            24 + 12 * index
        );
        assert!(
            complaint.starts_with(&place) && complaint.contains(what),
            "{complaint}"
        );
    }
}

#[test]
fn the_records_must_end_where_the_header_says() {
    let mut bytes = good();
    bytes.truncate(24 + 12 * 3 + 5);
    assert!(
        complaint(bytes).contains("record 3 (counted from 0, byte offset 60): truncated: 5 of 12")
    );
    let mut bytes = good();
    bytes.truncate(24 + 12 * 3);
    assert!(complaint(bytes).contains("ends after 3 of 4 records"));
    let mut bytes = good();
    bytes.push(0);
    assert!(complaint(bytes).contains("record 4 (counted from 0, byte offset 72): bytes after"));
}

#[test]
fn spoilt_compression_is_refused_wherever_it_is() {
    let records: Vec<Record> = (0..5000)
        .map(|object| (object, object * 7 % 900 + 1, 0, 0))
        .collect();
    let packed = compressed(&bytes(5000, 1, 5000, &records));
    assert!(read(packed.clone()).is_ok());
    for length in (4..packed.len()).step_by(97) {
        let complaint = complaint(packed[..length].to_vec());
        assert!(complaint.contains("zstd"), "{complaint}");
    }
    for at in (0..packed.len()).step_by(61) {
        for bit in [0x01, 0x80] {
            let mut flipped = packed.clone();
            flipped[at] ^= bit;
            // A bit that the format ignores may flip unseen; the plain bytes must not change.
            if let Ok(plain) = read(flipped) {
                assert_eq!(plain.len(), 24 + 12 * 5000, "byte {at}");
            }
        }
    }
    let mut tail = packed.clone();
    tail.extend(b"more of it");
    assert!(complaint(tail).contains("after the end of the zstd frame"));
}

#[test]
fn a_truncated_frame_tells_how_far_it_got() {
    let records: Vec<Record> = (0..60_000).map(|object| (object, 64, 0, 0)).collect();
    let packed = compressed(&bytes(60_000, 1, 60_000, &records));
    let complaint = complaint(packed[..packed.len() * 3 / 4].to_vec());
    let number = complaint
        .strip_prefix("record ")
        .and_then(|rest| rest.split(' ').next());
    let number: u32 = number
        .and_then(|n| n.parse().ok())
        .expect("a record number");
    assert!((20_000..60_000).contains(&number), "{complaint}");
    assert!(
        complaint.contains("ends inside a zstd frame"),
        "{complaint}"
    );
}

#[test]
fn a_name_ends_at_its_first_dot() {
    for (path, name) in [
        ("a/b/sqlite.trace.zst", "sqlite"),
        ("git.atrc", "git"),
        ("plain", "plain"),
        (".hidden.trace", "hidden"),
        ("..", "trace"),
    ] {
        assert_eq!(name_of(Path::new(path)), name);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_refused_in_one_line_or_pass(bytes in vec(any::<u8>(), 0..300)) {
        accepts_only_what_it_passes_on(&bytes);
    }

    /// Nearly good ones reach further.
    #[test]
    fn a_spoilt_trace_is_refused_in_one_line_or_passes(
        spoils in vec((any::<usize>(), any::<u8>()), 0..4),
        cut in any::<usize>(),
        is_packed in any::<bool>(),
    ) {
        let mut bytes = if is_packed { compressed(&good()) } else { good() };
        for (at, byte) in spoils {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(cut % (2 * bytes.len()));
        accepts_only_what_it_passes_on(&bytes);
    }
}

/// What the fuzzer found worth keeping. Nothing is looked for where the crate is alone.
#[test]
fn the_fuzzers_corpus_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/trace");
    let Ok(files) = std::fs::read_dir(corpus) else {
        return;
    };
    let mut played = 0;
    for file in files {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        accepts_only_what_it_passes_on(&bytes);
        played += 1;
    }
    assert!(played > 0);
}
