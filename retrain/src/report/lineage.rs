//! What a run came from, so that it can be made again, or compared with another: its examples, its policy, and the program.

use retune_task::{RegressionSuite, Task, hex, sha256};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::dataset::{Dataset, put, put_row};

/// The candidate's manifest has the rest: its base, template, prompt and settings, with their digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Of Retune.
    pub version: String,
    /// Of all examples in their splits, prompts and answers.
    pub examples_sha256: String,
    /// Of the task's prompts.
    pub prompt_sha256: String,
    pub adapter_prompt_sha256: String,
    /// `[task.retrain]` as it was read, defaults included.
    pub policy: String,
}

impl Lineage {
    pub(crate) fn of(task: &Task, dataset: &Dataset) -> Self {
        let mut policy = task.retrain.clone();
        if let RegressionSuite::Own(_) = policy.regression {
            // The suite's prompts are its file's; that it was the task's own is told where it was asked.
            policy.regression = RegressionSuite::Default;
        }
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            examples_sha256: digest(dataset),
            prompt_sha256: sha256(&task.prompt),
            adapter_prompt_sha256: sha256(&task.adapter_prompt),
            policy: format!("{policy:?}"),
        }
    }
}

fn digest(dataset: &Dataset) -> String {
    let mut digest = Sha256::new();
    let parts = [&dataset.train, &dataset.development, &dataset.held_out];
    for (number, rows) in (0_u8..).zip(parts) {
        for row in rows {
            digest.update([number]);
            put(&mut digest, &row.request_id);
            put_row(&mut digest, row);
        }
    }
    hex(&digest.finalize())
}
