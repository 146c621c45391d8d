//! Everything kept: the Delta tables of exchanges, feedback, windows and runs, and beside them the files that decide
//! (adapters, stages, triggers, references, keys).
//!
//! Rows are appended, never changed; files are created once, never overwritten. So any number of processes can write
//! to one store, and any engine that reads Delta can read it.

mod adapters;
mod answers;
mod decisions;
mod error;
mod files;
mod ids;
mod keys;
mod ledger;
mod manifest;
mod queries;
mod rows;
mod schema;
mod stages;
mod table;
#[doc(hidden)]
pub mod wal;

pub use adapters::{ADAPTER_FILES, AdapterRef, adapter_digest};
pub use answers::{Mark, Snapshot};
pub use decisions::{Lease, Reference, Trigger};
pub use error::Error;
pub use keys::{Key, KeyList, KeyText, Role};
pub use ledger::{Ledger, LedgerStats};
pub use manifest::{Manifest, Probe, Source};
pub use queries::{ConversationQuery, ExchangeQuery, FeedbackQuery};
pub use rows::{Cursor, Exchange, Feedback, Purpose, Run, Window};
pub use schema::Table;
pub use stages::{Action, Refused, Stage, Stages, Standing, standings};
