//! All that can be read in a folder, whatever way: files as they are, and Parquet's rows.

use std::path::Path;

use arrow::json::LineDelimitedWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// Rows as lines of JSON, other files as texts.
pub(crate) fn words(folder: &Path) -> String {
    let mut words = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            words += &self::words(&path);
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        words += &String::from_utf8_lossy(&bytes);
        if path.extension().is_some_and(|e| e == "parquet") {
            let file = std::fs::File::open(&path).unwrap();
            let mut lines = LineDelimitedWriter::new(Vec::new());
            for batch in ParquetRecordBatchReaderBuilder::try_new(file)
                .unwrap()
                .build()
                .unwrap()
            {
                lines.write(&batch.unwrap()).unwrap();
            }
            lines.finish().unwrap();
            words += &String::from_utf8(lines.into_inner()).unwrap();
        }
    }
    words
}
