//! A segment of the log as bytes: how rows get in, and what can be got out whatever became of them.
//!
//! Pure, and by itself: what reads bytes that a kill or a bad disk left is fuzzed (tests/fuzz).
//!
//! A segment is a header and records. The header is `RETUNWAL`, the format's version and a checksum of both; a record is
//! `[length u32][checksum u32][number u64][row]`, little-endian, the checksum (CRC-32) over all the rest. Numbers grow by one from
//! record to record. The row is JSON text and so has no zero byte in it, and a number always has: no row, whoever wrote its words, can
//! pass for a record inside of another one.

/// What every segment begins with.
const MAGIC: [u8; 8] = *b"RETUNWAL";
/// The format that this program writes, and the only one that it reads.
pub const FORMAT: u32 = 1;
/// Bytes of a segment before its first record.
pub const HEADER: usize = 16;
/// Bytes of a record before its row.
pub const OVERHEAD: usize = 16;

/// One row, and its number in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Grows by one from record to record.
    pub number: u64,
    /// JSON text.
    pub row: &'a [u8],
}

/// Bytes between two good records that are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// Where it begins.
    pub offset: usize,
    /// How long it is.
    pub bytes: usize,
    /// Rows that were there, as the numbers around them tell.
    pub rows: u64,
}

/// All that a segment's bytes give.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan<'a> {
    /// Good records, in order.
    pub records: Vec<Record<'a>>,
    /// What is between them and none.
    pub damaged: Vec<Damage>,
    /// Bytes behind the last good record: a write that was cut off, or damage with nothing good behind it.
    pub torn: usize,
}

/// The segment is whole, and in a format that this program does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherFormat(pub u32);

/// The bytes that a segment begins with.
pub fn header() -> [u8; HEADER] {
    header_of(FORMAT)
}

fn header_of(format: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&format.to_le_bytes());
    let checksum = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Adds a record; false if the row is too long for one (4 GiB), and then nothing was added.
pub fn push(segment: &mut Vec<u8>, number: u64, row: &[u8]) -> bool {
    let Ok(length) = u32::try_from(row.len()) else {
        return false;
    };
    segment.extend_from_slice(&length.to_le_bytes());
    segment.extend_from_slice(&checksum(length, number, row).to_le_bytes());
    segment.extend_from_slice(&number.to_le_bytes());
    segment.extend_from_slice(row);
    true
}

fn checksum(length: u32, number: u64, row: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(row);
    hasher.finalize()
}

/// Reads a segment whose first record has, or had, the number `first`.
pub fn scan(segment: &[u8], first: u64) -> Result<Scan<'_>, OtherFormat> {
    let mut scan = Scan::default();
    let mut next = first;
    let mut at = HEADER;
    match segment.get(..HEADER) {
        // Cut off before there was a record.
        None => {
            scan.torn = segment.len();
            return Ok(scan);
        }
        Some(header) if *header == self::header() => {}
        Some(header) => {
            let format = number(header, 8, 4) as u32;
            if *header == header_of(format) {
                return Err(OtherFormat(format));
            }
            // The records say themselves whether they are good.
            scan.damaged.push(Damage {
                offset: 0,
                bytes: HEADER,
                rows: 0,
            });
        }
    }
    while at < segment.len() {
        let Some((start, record)) = (at..segment.len()).find_map(|start| {
            // So many records, each with its overhead, may have been in between; none if this one follows at once.
            let most = next.saturating_add(((start - at) / OVERHEAD) as u64);
            Some((start, record(segment, start, next..=most)?))
        }) else {
            scan.torn = segment.len() - at;
            break;
        };
        if start > at {
            scan.damaged.push(Damage {
                offset: at,
                bytes: start - at,
                rows: record.number - next,
            });
        }
        scan.records.push(record);
        next = record.number.saturating_add(1);
        at = start + OVERHEAD + record.row.len();
    }
    Ok(scan)
}

/// The record at a place, if there is a good one with such a number.
fn record(segment: &[u8], at: usize, numbers: std::ops::RangeInclusive<u64>) -> Option<Record<'_>> {
    let head = segment.get(at..at + OVERHEAD)?;
    let (length, sum) = (number(head, 0, 4) as u32, number(head, 4, 4) as u32);
    let number = number(head, 8, 8);
    if !numbers.contains(&number) {
        return None;
    }
    let row = segment.get(at + OVERHEAD..)?.get(..length as usize)?;
    (checksum(length, number, row) == sum).then_some(Record { number, row })
}

fn number(bytes: &[u8], from: usize, length: usize) -> u64 {
    let mut number = [0; 8];
    number[..length].copy_from_slice(&bytes[from..from + length]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn segment(first: u64, rows: &[String]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header().to_vec();
        let mut ends = Vec::new();
        for (number, row) in (first..).zip(rows) {
            assert!(push(&mut bytes, number, row.as_bytes()));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn rows(scan: &Scan<'_>) -> Vec<(u64, String)> {
        let text = |row: &[u8]| String::from_utf8(row.to_vec()).unwrap();
        scan.records
            .iter()
            .map(|r| (r.number, text(r.row)))
            .collect()
    }

    fn numbered(first: u64, rows: &[String]) -> Vec<(u64, String)> {
        (first..).zip(rows.iter().cloned()).collect()
    }

    proptest! {
        #[test]
        fn a_log_cut_anywhere_gives_its_first_rows(sent in prop::collection::vec("[^\u{0}]{0,40}", 0..20), first in 1..u64::MAX / 2) {
            let (bytes, ends) = segment(first, &sent);
            for cut in 0..=bytes.len() {
                let scan = scan(&bytes[..cut], first).unwrap();
                let whole = ends.iter().filter(|end| **end <= cut).count();
                prop_assert_eq!(rows(&scan), numbered(first, &sent[..whole]));
                prop_assert!(scan.damaged.is_empty());
                let good = if cut < HEADER { 0 } else { ends[..whole].last().copied().unwrap_or(HEADER) };
                prop_assert_eq!(scan.torn, cut - good);
            }
        }

        #[test]
        fn a_damaged_byte_costs_its_own_row_and_makes_none(
            sent in prop::collection::vec("[^\u{0}]{0,40}", 1..12), first in 1..1_000_000_u64, flip in 1..=255_u8
        ) {
            let (bytes, ends) = segment(first, &sent);
            let all = numbered(first, &sent);
            for place in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[place] ^= flip;
                let scan = scan(&damaged, first).unwrap();
                let hit = (place >= HEADER).then(|| ends.iter().position(|end| *end > place).unwrap());
                let kept: Vec<_> = all.iter().enumerate().filter(|(n, _)| Some(*n) != hit).map(|(_, row)| row.clone()).collect();
                prop_assert_eq!(rows(&scan), kept);
                let last = hit == Some(sent.len() - 1);
                let lost: u64 = scan.damaged.iter().map(|d| d.rows).sum();
                prop_assert_eq!((lost, scan.torn > 0), (u64::from(hit.is_some() && !last), last));
                prop_assert!(!scan.damaged.is_empty() || last);
            }
        }

        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..400), with_header in any::<bool>()) {
            let mut segment = if with_header { header().to_vec() } else { Vec::new() };
            segment.extend(bytes);
            let scan = scan(&segment, 1).unwrap();
            prop_assert!(scan.records.is_empty());
        }

        #[test]
        fn what_was_cut_out_is_counted(sent in prop::collection::vec("[^\u{0}]{0,40}", 3..12), from in 0..12_usize, count in 1..12_usize) {
            let (bytes, ends) = segment(1, &sent);
            let from = from % (sent.len() - 1);
            let to = (from + count).min(sent.len() - 1);
            let start = if from == 0 { HEADER } else { ends[from - 1] };
            let mut damaged = bytes.clone();
            damaged[start..ends[to - 1]].fill(0xff);
            let scan = scan(&damaged, 1).unwrap();
            prop_assert_eq!(scan.damaged, [Damage { offset: start, bytes: ends[to - 1] - start, rows: (to - from) as u64 }]);
            prop_assert_eq!(scan.records.len(), sent.len() - (to - from));
        }
    }

    #[test]
    fn another_format_is_refused_and_not_read_as_this_one() {
        let mut bytes = header_of(2).to_vec();
        push(&mut bytes, 1, b"{}");
        assert_eq!(scan(&bytes, 1), Err(OtherFormat(2)));
    }

    #[test]
    fn zeros_that_a_power_cut_leaves_are_no_rows() {
        let (mut bytes, _) = segment(1, &["{}".to_owned()]);
        bytes.extend([0; 4096]);
        let scan = scan(&bytes, 1).unwrap();
        assert_eq!((scan.records.len(), scan.torn), (1, 4096));
    }
}
