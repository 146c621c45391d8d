//! The log's files: where they are, and their rows as Arrow's.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use retune_record::{self as record, Scan};

use crate::error::Error;
use crate::files;
use crate::layout;
use crate::schema::Table;

pub(crate) const LOCK: &str = "lock";
/// A file of this name asks the folder's process to publish at once.
pub(crate) const PUBLISH: &str = "publish";
const ENDING: &str = ".wal";

/// Rows and bytes of one batch: a column of texts holds 2 GiB at most.
const BATCH_ROWS: usize = 8192;
const BATCH_BYTES: usize = 64 << 20;

/// A segment in some replica's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) first: u64,
}

pub(crate) fn name(table: Table, first: u64) -> String {
    format!("{table}-{first:020}{ENDING}")
}

/// Replicas that have a folder, in the order of their names.
pub(crate) fn replicas(wal: &Path) -> Result<Vec<String>, Error> {
    files::names(wal)
}

/// A table's segments in a replica's folder, in order; none where there is no folder (any more).
pub(crate) fn of(folder: &Path, table: Table) -> Result<Vec<Found>, Error> {
    let prefix = format!("{table}-");
    let found = |name: String| {
        let first = name.strip_prefix(&prefix)?.strip_suffix(ENDING)?;
        Some(Found {
            first: first.parse().ok()?,
            path: folder.join(&name),
        })
    };
    // The names' numbers have all the same width.
    Ok(files::names(folder)?
        .into_iter()
        .filter_map(found)
        .collect())
}

/// Opens a segment; none where it is gone, which means that it was published.
pub(crate) fn open(path: &Path) -> Result<Option<(File, u64)>, Error> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    match opened {
        Ok((bytes, file)) => Ok(Some((file, bytes))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path)(e)),
    }
}

/// A segment's first `length` bytes.
pub(crate) fn read(file: &mut File, path: &Path, length: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.take(length).read_to_end(&mut bytes))
        .map_err(Error::io(path))?;
    Ok(bytes)
}

/// What a segment's bytes give.
pub(crate) fn scan<'a>(path: &Path, first: u64, bytes: &'a [u8]) -> Result<Scan<'a>, Error> {
    record::scan(bytes, first).map_err(|record::OtherFormat(format)| Error::Damaged {
        path: path.to_owned(),
        what: format!(
            "is a log of format {format}, and this program reads format {}; open the store once with the newer program that wrote it",
            record::FORMAT
        ),
    })
}

/// Rows as batches, and those that Arrow refuses with its reason: they must not hold up the others.
pub(crate) fn decode<'a>(
    schema: &SchemaRef,
    rows: &[&'a [u8]],
) -> (Vec<RecordBatch>, Vec<(&'a [u8], ArrowError)>) {
    let (mut batches, mut refused) = (Vec::new(), Vec::new());
    let mut rest = rows;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fitting = rest.iter().take(BATCH_ROWS).take_while(|row| {
            bytes += row.len();
            bytes <= BATCH_BYTES
        });
        let count = fitting.count().max(1);
        let (some, more) = rest.split_at(count);
        rest = more;
        if let Ok(batch) = batch(schema, some) {
            batches.push(batch);
            continue;
        }
        for row in some {
            match batch(schema, &[row]) {
                Ok(batch) => batches.push(batch),
                Err(e) => refused.push((*row, e)),
            }
        }
    }
    (batches, refused)
}

fn batch(schema: &SchemaRef, rows: &[&[u8]]) -> Result<RecordBatch, ArrowError> {
    // It stops reading when a batch is full, which it must not before its end is told.
    let mut decoder = ReaderBuilder::new(layout::without_day(schema))
        .with_batch_size(rows.len() + 1)
        .build_decoder()?;
    let not_one = || ArrowError::JsonError("it is not one JSON object".to_owned());
    for row in rows {
        if decoder.decode(row)? != row.len() || decoder.has_partial_record() {
            return Err(not_one());
        }
    }
    let batch = decoder.flush()?;
    let batch = batch.filter(|batch| batch.num_rows() == rows.len());
    layout::as_of(batch.ok_or_else(not_one)?, schema)
}

/// How a row is named where its text must not be: by its id.
pub(crate) fn id(row: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Ids {
        feedback_id: Option<String>,
        request_id: Option<String>,
    }
    let ids: Option<Ids> = serde_json::from_slice(row).ok();
    ids.and_then(|ids| ids.feedback_id.or(ids.request_id))
        .unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_arrow_refuses_is_left_out_and_the_others_are_kept_in_order() {
        let rows: [&[u8]; 5] = [
            br#"{"request_id":"a","code":200}"#,
            br#"{"request_id":"b","code":"many"}"#,
            br#"{"request_id":"c","code":201}"#,
            br#"{"request_id":"d""#,
            br#"{"request_id":"e"}{"request_id":"f"}"#,
        ];
        let (batches, refused) = decode(&Table::Exchanges.schema(), &rows);
        let kept: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let names: Vec<String> = refused.iter().map(|(row, _)| id(row)).collect();
        assert_eq!(
            (kept, names),
            (2, ["b", "unknown", "unknown"].map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn segments_are_found_in_order_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let names = [
            name(Table::Exchanges, 10),
            name(Table::Exchanges, 9),
            name(Table::Feedback, 1),
            "lock".to_owned(),
            "exchanges-x.wal".to_owned(),
        ];
        for name in &names {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = of(folder.path(), Table::Exchanges).unwrap();
        assert_eq!(found.iter().map(|f| f.first).collect::<Vec<_>>(), [9, 10]);
        assert_eq!(
            of(&folder.path().join("none"), Table::Exchanges).unwrap(),
            []
        );
    }
}
