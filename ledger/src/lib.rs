//! Everything kept: the Delta tables of exchanges, feedback, windows and runs, and beside them the files that decide
//! (adapters, stages, triggers, references, keys).
//!
//! Rows are appended, never changed; files are created once, never overwritten. So any number of processes can write
//! to one store, and any engine that reads Delta can read it.

mod adapters;
mod decisions;
mod error;
mod files;
mod ids;
mod keys;
mod ledger;
mod queue;
mod rows;
mod schema;
mod table;

pub use adapters::{AdapterRef, Manifest};
pub use decisions::{Lease, Reference, Stage, Stages, Trigger};
pub use error::Error;
pub use keys::{Key, KeyList, KeyText, Role};
pub use ledger::{ExchangeQuery, FeedbackQuery, Ledger, LedgerStats};
pub use rows::{Cursor, Exchange, Feedback, Purpose, Run, Window};
pub use schema::Table;
