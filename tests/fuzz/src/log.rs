//! Segments of the write-ahead log: whatever the bytes are, each of them is accounted for; and what a kill or a bad disk does to a good
//! segment costs no row that it did not touch.
#![no_main]

use libfuzzer_sys::fuzz_target;
use retune_record::{FORMAT, HEADER, OVERHEAD, OtherFormat, Scan, header, push, scan};

/// Between two rows of a segment that is made of an input.
const BETWEEN: u8 = b'\n';

fuzz_target!(|input: &[u8]| {
    any(input);
    // Behind a good header more of it is looked at.
    any(&[&header(), input].concat());
    if let Some((place, rows)) = input.split_at_checked(4) {
        let place = u32::from_le_bytes(place.try_into().expect("four bytes"));
        broken(place, rows);
    }
});

/// Bytes of any kind.
fn any(segment: &[u8]) {
    let first = 7;
    let scan = match scan(segment, first) {
        Ok(scan) => scan,
        Err(OtherFormat(format)) => {
            assert_ne!(format, FORMAT);
            return;
        }
    };
    let rows: usize = scan.records.iter().map(|r| OVERHEAD + r.row.len()).sum();
    let damaged: usize = scan.damaged.iter().map(|damage| damage.bytes).sum();
    let bad_header = scan
        .damaged
        .first()
        .is_some_and(|damage| damage.offset == 0);
    let head = if segment.len() < HEADER || bad_header {
        0
    } else {
        HEADER
    };
    assert_eq!(head + rows + damaged + scan.torn, segment.len(), "{scan:?}");
    let numbers: Vec<u64> = scan.records.iter().map(|record| record.number).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|n| *n >= first));
    // Rows that were lost are those whose numbers are missing.
    let lost: u64 = scan.damaged.iter().map(|damage| damage.rows).sum();
    let reached = numbers.last().map_or(first, |last| last + 1);
    assert_eq!(reached - first, numbers.len() as u64 + lost, "{scan:?}");
}

/// A good segment, cut off at a place, or with another byte there.
fn broken(place: u32, rows: &[u8]) {
    let rows: Vec<Vec<u8>> = rows
        .split(|byte| *byte == BETWEEN)
        // A row is JSON text, which has no zero byte.
        .map(|row| row.iter().copied().filter(|byte| *byte != 0).collect())
        .collect();
    let mut segment = header().to_vec();
    let mut ends = Vec::new();
    for (number, row) in (1..).zip(&rows) {
        assert!(push(&mut segment, number, row));
        ends.push(segment.len());
    }
    let place = place as usize % segment.len();
    let cut = scan(&segment[..place], 1).expect("this format");
    let whole = ends.iter().filter(|end| **end <= place).count();
    assert_eq!(found(&cut), texts(rows[..whole].iter()));
    assert!(cut.damaged.is_empty());

    segment[place] ^= 1 + (place % 255) as u8;
    let flipped = scan(&segment, 1).expect("one byte makes no other format");
    let hit = ends.iter().position(|end| place >= HEADER && place < *end);
    let left = rows.iter().enumerate().filter(|(n, _)| Some(*n) != hit);
    assert_eq!(found(&flipped), texts(left.map(|(_, row)| row)));
}

fn found<'a>(scan: &Scan<'a>) -> Vec<&'a [u8]> {
    scan.records.iter().map(|record| record.row).collect()
}

fn texts<'a>(rows: impl Iterator<Item = &'a Vec<u8>>) -> Vec<&'a [u8]> {
    rows.map(Vec::as_slice).collect()
}
