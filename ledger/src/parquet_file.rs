//! A Parquet file of a table read by itself, without the table: to find out whether it is whole, and what it has.

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::reader::ChunkReader;

use crate::error::Error;
use crate::place::Place;
use crate::wal::segments;

/// Rows decoded at once.
const BATCH_ROWS: usize = 4096;

/// Its length in bytes, and whether it could be decoded.
pub(crate) type Read = (u64, Result<(), ParquetError>);

/// Gives a file's batches away, with these columns or all, until that says false; none where there is no file. Fails where that cannot
/// be found out.
pub(crate) fn read(
    place: &Place,
    columns: Option<&[&str]>,
    take: impl FnMut(RecordBatch) -> Result<bool, ArrowError>,
) -> Result<Option<Read>, Error> {
    if place.as_bucket().is_some() {
        let bytes = place.read()?.map(Bytes::from);
        return Ok(bytes.map(|bytes| (bytes.len() as u64, batches(bytes, columns, take))));
    }
    let opened = segments::open(&place.shown())?;
    Ok(opened.map(|(file, length)| (length, batches(file, columns, take))))
}

fn batches(
    file: impl ChunkReader + 'static,
    columns: Option<&[&str]>,
    mut take: impl FnMut(RecordBatch) -> Result<bool, ArrowError>,
) -> Result<(), ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)?.with_batch_size(BATCH_ROWS);
    let projection = match columns {
        None => ProjectionMask::all(),
        Some(columns) => ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied()),
    };
    for batch in builder.with_projection(projection).build()? {
        if !take(batch?)? {
            return Ok(());
        }
    }
    Ok(())
}
