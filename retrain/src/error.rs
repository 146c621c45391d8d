//! What can go wrong in a run, in words that say where and what to do.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no task `{task}`; the configuration has: {known}")]
    UnknownTask { task: String, known: String },
    #[error(
        "a run of task `{task}` is under way in another process; wait for it to end, `retune ledger sql \"select * from runs\"` shows it"
    )]
    Busy { task: String },
    #[error("a run's page could not be made: {0}")]
    Page(String),
    #[error("{name}: {what}")]
    NoDataset { name: String, what: String },
    #[error(transparent)]
    Ledger(#[from] retune_ledger::Error),
    #[error(transparent)]
    Task(#[from] retune_task::Error),
    #[error(transparent)]
    Trainer(#[from] retune_trainer::Error),
    #[error("{path}: the base's tokenizer cannot be read: {what}; is it a complete model folder?")]
    Tokenizer { path: PathBuf, what: String },
    #[error("a text cannot be made into tokens, or tokens into a text: {what}")]
    Tokenise { what: String },
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: {what}")]
    Base { path: PathBuf, what: String },
    #[error("{path}: {what}")]
    Prompt { path: PathBuf, what: String },
    #[error(
        "no exchange of task `{task}` has a known answer to measure by: a correction, or a rating of 5{}; rate and correct answers, or bring \
         some with `retune ledger import` or `retune dataset import`",
        among_examples(.in_prompts)
    )]
    NothingKnown { task: String, in_prompts: u64 },
    #[error("no row fits into the context of {base} beside the prompt {prompt}")]
    NothingFits { base: String, prompt: String },
    #[error(
        "no example of task `{task}` is left to train on after tokenising ({too_long} are longer than the model's {context} tokens)"
    )]
    NothingToTrain {
        task: String,
        too_long: u64,
        context: usize,
    },
    #[error(
        "the server at {url} cannot be reached: {source}; is `retune up` running, and is its address this one?"
    )]
    Unreachable { url: String, source: reqwest::Error },
    #[error("{request} was answered with {status}: {message}")]
    Refused {
        request: String,
        status: u16,
        message: String,
    },
    #[error(
        "{request} was answered with something else than expected: {what}; is a Retune of this version running there?"
    )]
    Unexpected { request: String, what: String },
    #[error("`{asked}` was asked and {what}; the examination would be of another model")]
    WrongModel { asked: String, what: String },
    #[error("there is no fine-tuning job `{0}`; GET /v1/fine_tuning/jobs lists them")]
    UnknownJob(String),
    #[error("the fine-tuning job `{0}` is under way in another process")]
    BusyJob(String),
    #[error("the file `{0}` is not there any more")]
    NoFile(String),
    #[error("`{0}` is no adapter to go on from")]
    NoAdapter(String),
    #[error("line {number} of the file cannot be learned from: {what}")]
    Line { number: usize, what: String },
    #[error(
        "its calls of tools cannot be learned, since the base's chat template does not write them where an answer begins"
    )]
    Calls,
    #[error(
        "no example of the file is left: all {too_long} are longer than the model's {context} tokens"
    )]
    NoExamples { too_long: usize, context: usize },
    #[error("somebody halted the job")]
    Halted,
    #[error("the run's report cannot be written as JSON: {0}")]
    Report(serde_json::Error),
    #[error("{program} {what}")]
    Program { program: String, what: String },
    #[error("the variable {name}, which is to hold the {whose} key ({setting}), is not set")]
    NoKey {
        name: String,
        whose: &'static str,
        setting: &'static str,
    },
    #[error(
        "the training took {used_mib} MiB of memory, and training.memory_mib allows {allowed_mib}; raise it, or train with a smaller batch_size, \
         shorter examples, or recompute = true"
    )]
    Memory { used_mib: u64, allowed_mib: u64 },
    #[error("a thread for the training could not be started: {0}")]
    Thread(std::io::Error),
    #[error("there is no run `{run_id}`")]
    NoRun { run_id: String },
    #[error(
        "the run `{run_id}` waits for people, and this version cannot read what it knows: its candidate stays as it is, and its votes are in the store"
    )]
    OldReport { run_id: String },
    #[error("the run was told to stop")]
    Stopped,
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

fn among_examples(rows: &u64) -> String {
    match rows {
        0 => String::new(),
        rows => format!(" ({rows} have one, and are among the prompts' own examples)"),
    }
}
