//! Rows that are in a log and not in their table, for questions.
//!
//! Exactly once, beside processes that write and publish at the same moment, by the order of reading:
//!
//! 1. [`find`] opens every replica's segments. A row that was acknowledged before is in one of them, unless its segment was
//!    published, and deleted, before it could be opened.
//! 2. Only then the table's newest version is taken. A row whose segment was gone is in it.
//! 3. Of each replica the rows are kept whose number is above that replica's last one in *this* version ([`Pending::provider`]): it has
//!    all others of that replica, since segments are published in order and each commit has its last number in it.
//!
//! The other way round, a segment published between the two steps would be in neither. The files are held open: one that is
//! deleted while it is read stays readable.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow::datatypes::SchemaRef;
use deltalake::datafusion::catalog::TableProvider;
use deltalake::datafusion::catalog::streaming::StreamingTable;
use deltalake::datafusion::error::{DataFusionError, Result as QueryResult};
use deltalake::datafusion::execution::{SendableRecordBatchStream, TaskContext};
use deltalake::datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use deltalake::datafusion::physical_plan::streaming::PartitionStream;

use super::{held, segments};
use crate::error::Error;
use crate::schema::Table;

/// An open segment, as long as it was when it was found.
#[derive(Debug)]
struct Piece {
    file: Mutex<File>,
    path: PathBuf,
    first: u64,
    length: u64,
}

/// A table's rows in the logs of all processes of this machine, some of them perhaps in the table already.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    replicas: Vec<(String, Vec<Piece>)>,
}

/// What there is in the logs now.
pub(crate) fn find(wal: &Path, table: Table) -> Result<Pending, Error> {
    let mut pending = Pending::default();
    for replica in segments::replicas(wal)? {
        let mut pieces = Vec::new();
        for found in segments::of(&wal.join(&replica), table)? {
            if let Some((file, length)) = segments::open(&found.path)? {
                pieces.push(Piece {
                    file: Mutex::new(file),
                    path: found.path,
                    first: found.first,
                    length,
                });
            }
        }
        if !pieces.is_empty() {
            pending.replicas.push((replica, pieces));
        }
    }
    Ok(pending)
}

impl Pending {
    /// Replicas with rows.
    pub(crate) fn replicas(&self) -> Vec<String> {
        self.replicas.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Names and lengths of the segments.
    pub(crate) fn lengths(&self) -> Vec<(PathBuf, u64)> {
        let pieces = self.replicas.iter().flat_map(|(_, pieces)| pieces);
        pieces.map(|p| (p.path.clone(), p.length)).collect()
    }

    /// The rows above the numbers that the table has of each replica, in the order of [`Self::replicas`]; none if there are none.
    pub(crate) fn provider(
        self,
        schema: SchemaRef,
        published: &[u64],
    ) -> QueryResult<Option<Arc<dyn TableProvider>>> {
        let mut parts: Vec<Part> = Vec::new();
        for ((_, pieces), above) in self.replicas.into_iter().zip(published) {
            let mut left = pieces.into_iter().peekable();
            while let Some(piece) = left.next() {
                let last = left.peek().map(|next| next.first - 1);
                if last.is_none_or(|last| last > *above) {
                    parts.push(Part {
                        schema: schema.clone(),
                        pieces: vec![(Arc::new(piece), *above)],
                    });
                }
            }
        }
        if parts.is_empty() {
            return Ok(None);
        }
        // One reader a core, so that a long log is not in memory all at once.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut partitions: Vec<Part> = Vec::new();
        for (n, part) in parts.into_iter().enumerate() {
            match partitions.get_mut(n % cores) {
                Some(partition) => partition.pieces.extend(part.pieces),
                None => partitions.push(part),
            }
        }
        let partitions = partitions
            .into_iter()
            .map(|part| Arc::new(part) as Arc<dyn PartitionStream>)
            .collect();
        let table = StreamingTable::try_new(schema, partitions)?;
        Ok(Some(Arc::new(table)))
    }
}

/// Some segments, one after another.
#[derive(Debug)]
struct Part {
    schema: SchemaRef,
    pieces: Vec<(Arc<Piece>, u64)>,
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut stream = RecordBatchReceiverStreamBuilder::new(self.schema.clone(), 2);
        let (sender, schema) = (stream.tx(), self.schema.clone());
        let pieces = self.pieces.clone();
        stream.spawn_blocking(move || {
            for (piece, above) in pieces {
                for batch in piece.batches(above, &schema)? {
                    if sender.blocking_send(Ok(batch)).is_err() {
                        // The question has all that it wants.
                        return Ok(());
                    }
                }
            }
            Ok(())
        });
        stream.build()
    }
}

impl Piece {
    fn batches(
        &self,
        above: u64,
        schema: &SchemaRef,
    ) -> QueryResult<Vec<arrow::array::RecordBatch>> {
        let outside = |e: Error| DataFusionError::External(Box::new(e));
        let bytes =
            segments::read(&mut held(&self.file), &self.path, self.length).map_err(outside)?;
        // A torn end is a row that is being written, or was not acknowledged; damage is told when it is published.
        let scan = segments::scan(&self.path, self.first, &bytes).map_err(outside)?;
        let fresh = scan.records.iter().filter(|record| record.number > above);
        let rows: Vec<&[u8]> = fresh.map(|record| record.row).collect();
        Ok(segments::decode(schema, &rows).0)
    }
}
