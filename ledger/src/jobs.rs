//! Fine-tuning jobs: what was asked, and what has become of it since.
//!
//! `jobs/<id>/job.json` is created once. What happens after it is numbered files beside it, each created if absent: whoever creates
//! number 8 has said what comes after number 7. So the server that lets somebody cancel a job and the process that trains it need no
//! word with each other, and a job's state is what its files add up to.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::ids;
use crate::ledger::Ledger;
use crate::place::Place;

const JOB: &str = "job.json";
const PREFIX: &str = "ftjob-";

/// What was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// `ftjob-` and 32 hex digits.
    pub id: String,
    /// When.
    pub created: DateTime<Utc>,
    /// By whose key.
    pub by: Option<String>,
    /// The base's id.
    pub model: String,
    /// The adapter to go on from, `support@3`; none: a fresh one.
    #[serde(default)]
    pub from: Option<String>,
    /// What its file is made of.
    #[serde(default)]
    pub method: JobMethod,
    /// What its adapters are called.
    pub task: String,
    /// As it was asked for; none was: the task's name is made of the job's id.
    pub suffix: Option<String>,
    /// Of an upload.
    pub training_file: String,
    /// Of an upload, which is measured after each epoch.
    pub validation_file: Option<String>,
    /// Repeats the training.
    pub seed: u64,
    /// None: by the file's size.
    pub n_epochs: Option<u32>,
    /// Examples a step. None: by the file's size.
    pub batch_size: Option<u32>,
    /// Of the learning rate that the base's width suggests. None: by the method.
    pub learning_rate_multiplier: Option<f64>,
    /// Of preferences: how close it stays to what it was.
    #[serde(default)]
    pub beta: Option<f64>,
    /// The client's own.
    pub metadata: Option<Value>,
}

/// What is learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobMethod {
    /// Conversations.
    #[default]
    Supervised,
    /// Preferences, by direct preference optimisation.
    Dpo,
}

impl Job {
    /// A fresh id.
    pub fn new_id() -> String {
        ids::random(PREFIX)
    }
}

/// Where a job stands, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// It waits for a process that trains.
    #[default]
    Queued,
    /// It is trained.
    Running,
    /// Somebody halted it; it goes on where it was.
    Paused,
    /// Its model is there.
    Succeeded,
    /// It ended without one.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

impl JobStatus {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing comes after it.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// What somebody may ask of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobAction {
    /// Ends it.
    Cancel,
    /// Halts it.
    Pause,
    /// Lets it go on.
    Resume,
}

impl JobAction {
    /// Where the job stands after it; none where it cannot be asked now.
    pub fn after(self, now: JobStatus) -> Option<JobStatus> {
        use JobStatus::{Cancelled, Paused, Queued, Running};
        match (self, now) {
            (Self::Cancel, Queued | Running | Paused) => Some(Cancelled),
            (Self::Pause, Queued | Running) => Some(Paused),
            (Self::Resume, Paused) => Some(Queued),
            _ => None,
        }
    }
}

/// Why it failed, in OpenAI's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// A word.
    pub code: String,
    /// A sentence.
    pub message: String,
    /// What of the request is to blame.
    pub param: Option<String>,
}

/// How grave an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobLevel {
    /// As expected.
    Info,
    /// It goes on, and somebody should know.
    Warn,
    /// It ends.
    Error,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobEvent {
    /// When.
    pub at: DateTime<Utc>,
    /// How grave.
    pub level: JobLevel,
    /// A sentence.
    pub message: String,
    /// A step's figures.
    pub metrics: Option<Value>,
}

/// An epoch's adapter, which answers by its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobCheckpoint {
    /// When.
    pub at: DateTime<Utc>,
    /// The epoch, from 1.
    pub epoch: u32,
    /// Steps done.
    pub step: u64,
    /// Of the adapter.
    pub number: u32,
    /// The epoch's figures.
    pub metrics: Value,
}

/// What `auto` became.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct JobSettings {
    /// Times every example is seen.
    pub n_epochs: u32,
    /// Examples a step.
    pub batch_size: u32,
    /// Of the learning rate that the base's width suggests.
    pub learning_rate_multiplier: f64,
    /// Of preferences.
    #[serde(default)]
    pub beta: Option<f64>,
}

/// One numbered file: what is new. What it does not say stays as it was.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobEntry {
    /// When it was written.
    pub at: DateTime<Utc>,
    /// Where the job stands from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<JobStatus>,
    /// What `auto` became.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<JobSettings>,
    /// What happened.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<JobEvent>,
    /// New adapters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<JobCheckpoint>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// Tokens that were learned from, each epoch counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_tokens: Option<u64>,
    /// When it will be done, as far as one can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_finish: Option<DateTime<Utc>>,
    /// Uploads with the steps' figures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub result_files: Vec<String>,
}

/// A job and all that became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobState {
    /// What was asked.
    pub job: Job,
    /// The last entry's number; 0 where there is none.
    pub seq: u64,
    /// Where it stands.
    pub status: JobStatus,
    /// When it came to its end.
    pub finished: Option<DateTime<Utc>>,
    /// All entries' figures, the last that says one.
    pub settings: Option<JobSettings>,
    /// Likewise.
    pub error: Option<JobError>,
    /// Likewise.
    pub trained_tokens: Option<u64>,
    /// Likewise.
    pub estimated_finish: Option<DateTime<Utc>>,
    /// In order.
    pub events: Vec<JobEvent>,
    /// In order.
    pub checkpoints: Vec<JobCheckpoint>,
    /// In order.
    pub result_files: Vec<String>,
}

impl JobState {
    fn of(job: Job) -> Self {
        Self {
            job,
            seq: 0,
            status: JobStatus::default(),
            finished: None,
            settings: None,
            error: None,
            trained_tokens: None,
            estimated_finish: None,
            events: Vec::new(),
            checkpoints: Vec::new(),
            result_files: Vec::new(),
        }
    }

    /// Takes in the next entry.
    fn add(&mut self, entry: JobEntry) {
        self.seq += 1;
        self.status = entry.status.unwrap_or(self.status);
        if self.status.is_end() {
            self.finished = self.finished.or(Some(entry.at));
        }
        self.settings = entry.settings.or(self.settings);
        self.error = entry.error.or(self.error.take());
        self.trained_tokens = entry.trained_tokens.or(self.trained_tokens);
        self.estimated_finish = entry.estimated_finish.or(self.estimated_finish);
        self.events.extend(entry.events);
        self.checkpoints.extend(entry.checkpoints);
        self.result_files.extend(entry.result_files);
    }
}

impl Ledger {
    /// Keeps what was asked.
    pub async fn put_job(&self, job: &Job) -> Result<(), Error> {
        let job = job.clone();
        self.blocking(move |store| {
            place(store, &job.id).join(JOB).create_json_once(&job)?;
            Ok(())
        })
        .await
    }

    /// The ids of all jobs.
    pub async fn job_ids(&self) -> Result<Vec<String>, Error> {
        self.blocking(|store| store.join("jobs").names()).await
    }

    /// A job with all that became of it; none where there is no such job.
    pub async fn job(&self, id: &str) -> Result<Option<JobState>, Error> {
        let id = id.to_owned();
        self.blocking(move |store| job(store, &id)).await
    }

    /// Takes into `state` what others said since.
    pub async fn follow_job(&self, state: &mut JobState) -> Result<(), Error> {
        let (id, seq) = (state.job.id.clone(), state.seq);
        let entries = self.blocking(move |store| entries(store, &id, seq)).await?;
        entries.into_iter().for_each(|entry| state.add(entry));
        Ok(())
    }

    /// Says what comes after the entry `after`; false if somebody else said something meanwhile.
    pub async fn add_to_job(&self, id: &str, after: u64, entry: &JobEntry) -> Result<bool, Error> {
        let (id, entry) = (id.to_owned(), entry.clone());
        self.blocking(move |store| {
            let name = format!("{}.json", after + 1);
            place(store, &id).join(name).create_json_once(&entry)
        })
        .await
    }
}

fn place(store: &Place, id: &str) -> Place {
    store.join("jobs").join(id)
}

fn job(store: &Place, id: &str) -> Result<Option<JobState>, Error> {
    if !ids::is_random(PREFIX, id) {
        return Ok(None);
    }
    let Some(asked) = place(store, id).join(JOB).read_json()? else {
        return Ok(None);
    };
    let mut state = JobState::of(asked);
    let entries = entries(store, id, 0)?;
    entries.into_iter().for_each(|entry| state.add(entry));
    Ok(Some(state))
}

/// Those after the entry `after`. They are numbered without a gap, since each is created by who has read the one before.
fn entries(store: &Place, id: &str, after: u64) -> Result<Vec<JobEntry>, Error> {
    let folder = place(store, id);
    let mut entries = Vec::new();
    for seq in after + 1.. {
        match folder.join(format!("{seq}.json")).read_json()? {
            None => break,
            Some(entry) => entries.push(entry),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn asked() -> Job {
        Job {
            id: Job::new_id(),
            created: Utc::now(),
            by: None,
            model: "pocket".to_owned(),
            from: None,
            method: JobMethod::Supervised,
            task: "support".to_owned(),
            suffix: None,
            training_file: "file-1".to_owned(),
            validation_file: None,
            seed: 1,
            n_epochs: None,
            batch_size: None,
            learning_rate_multiplier: None,
            beta: None,
            metadata: None,
        }
    }

    #[test]
    fn a_job_is_what_its_entries_add_up_to() {
        let folder = tempfile::tempdir().unwrap();
        let store = Place::folder(folder.path().to_owned());
        let asked = asked();
        let files = place(&store, &asked.id);
        assert!(job(&store, &asked.id).unwrap().is_none());
        files.join(JOB).create_json_once(&asked).unwrap();
        let mut state = job(&store, &asked.id).unwrap().unwrap();
        assert_eq!((state.seq, state.status), (0, JobStatus::Queued));
        let event = |message: &str| JobEvent {
            at: Utc::now(),
            level: JobLevel::Info,
            message: message.to_owned(),
            metrics: None,
        };
        let entries = [
            JobEntry {
                status: Some(JobStatus::Running),
                events: vec![event("one")],
                ..JobEntry::default()
            },
            JobEntry {
                trained_tokens: Some(7),
                events: vec![event("two")],
                ..JobEntry::default()
            },
            JobEntry {
                at: Utc::now(),
                status: Some(JobStatus::Succeeded),
                ..JobEntry::default()
            },
        ];
        for (entry, seq) in entries.iter().zip(1..) {
            assert!(
                files
                    .join(format!("{seq}.json"))
                    .create_json_once(entry)
                    .unwrap()
            );
        }
        let new = super::entries(&store, &asked.id, 0).unwrap();
        new.into_iter().for_each(|entry| state.add(entry));
        assert!(super::entries(&store, &asked.id, 3).unwrap().is_empty());
        assert_eq!(state, job(&store, &asked.id).unwrap().unwrap());
        assert_eq!((state.seq, state.status), (3, JobStatus::Succeeded));
        assert_eq!(
            (state.trained_tokens, state.finished),
            (Some(7), Some(entries[2].at))
        );
        let said: Vec<&str> = state.events.iter().map(|e| e.message.as_str()).collect();
        assert_eq!(said, ["one", "two"]);
        assert!(job(&store, "../jobs").unwrap().is_none());
    }

    #[test]
    fn what_is_over_stays_over() {
        use JobAction::{Cancel, Pause, Resume};
        use JobStatus::{Cancelled, Failed, Paused, Queued, Running, Succeeded};
        for (action, now, after) in [
            (Cancel, Queued, Some(Cancelled)),
            (Cancel, Paused, Some(Cancelled)),
            (Cancel, Running, Some(Cancelled)),
            (Pause, Running, Some(Paused)),
            (Pause, Queued, Some(Paused)),
            (Pause, Paused, None),
            (Resume, Paused, Some(Queued)),
            (Resume, Running, None),
            (Cancel, Succeeded, None),
            (Resume, Failed, None),
            (Pause, Cancelled, None),
        ] {
            assert_eq!(action.after(now), after, "{action:?} {now:?}");
        }
    }
}
