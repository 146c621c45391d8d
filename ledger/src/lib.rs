//! Everything kept: the Delta tables of exchanges, feedback, windows and runs, and beside them the files that decide
//! (adapters, stages, triggers, references, pairs of answers, keys).
//!
//! Rows are appended, never changed; files are created once, never overwritten. So any number of processes can write
//! to one store, and any engine that reads Delta can read it.

mod adapters;
mod alarms;
mod answers;
mod bucket;
#[cfg(feature = "ballista")]
mod cluster;
mod commit;
mod decisions;
mod error;
pub mod evidence;
mod export;
mod faults;
mod files;
mod forget;
mod ids;
mod import;
mod jobs;
mod keys;
mod layout;
mod lease;
mod ledger;
mod manifest;
mod pairs;
mod parquet_file;
mod place;
mod privacy;
mod queries;
mod reference;
mod rows;
mod schema;
mod session;
mod stages;
mod table;
mod threads;
mod traffic;
mod upkeep;
mod uploads;
mod verify;
mod wal;

pub use adapters::{ADAPTER_FILES, AdapterRef, adapter_digest};
pub use alarms::{Trigger, Word};
pub use answers::{Mark, Size, Snapshot};
pub use error::Error;
pub use export::{Export, Lines};
pub use forget::{Forgetting, Forgotten, LearnedFrom};
pub use import::{Imported, Importer};
pub use jobs::{
    Job, JobAction, JobCheckpoint, JobEntry, JobError, JobEvent, JobLevel, JobMethod, JobSettings,
    JobState, JobStatus,
};
pub use keys::{Key, KeyList, KeyText, Role};
pub use lease::Lease;
pub use ledger::{Ledger, LedgerStats};
pub use manifest::{Examples, Manifest, Probe, Source};
pub use pairs::{Pair, PairVote, Pairs, Voted};
pub use queries::{ConversationQuery, ExchangeQuery, FeedbackQuery, WindowQuery};
pub use reference::{Counts, Ratings, Reference, Sample, Service, Span, Texts};
pub use rows::{Cursor, Exchange, Feedback, Purpose, Run, Window};
pub use schema::Table;
pub use session::Answer;
pub use stages::{Action, Refused, Stage, Stages, Standing, standings};
pub use traffic::{Traffic, TrafficQuery};
pub use upkeep::Kept;
pub use uploads::Upload;
pub use verify::{Finding, Verified};
