//! What a job leaves for whoever asked for it: the steps' figures as a file of comma-separated values, which scripts plot, and PEFT's two
//! files of its model.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use retune_ledger::{ADAPTER_FILES, AdapterRef, JobState, Ledger, Upload};
use serde_json::Value;

use crate::Error;

/// As OpenAI calls them, and what is more.
const COLUMNS: [&str; 5] = [
    "step",
    "train_loss",
    "full_valid_loss",
    "learning_rate",
    "gradient_norm",
];

/// Keeps the figures, and the model's two files; gives their ids.
pub(super) async fn keep(
    ledger: &Ledger,
    folder: &Path,
    state: &JobState,
    model: &AdapterRef,
) -> Result<Vec<String>, Error> {
    let figures = folder.join("step_metrics.csv");
    std::fs::write(&figures, table(state)).map_err(Error::file(&figures))?;
    let mut files = vec![figures];
    // Where the store is a bucket they may not be on this machine any more.
    ledger.verify_adapter(model).await?;
    for name in ADAPTER_FILES {
        let (from, to) = (model.folder.join(name), folder.join(name));
        std::fs::copy(&from, &to).map_err(Error::file(from))?;
        files.push(to);
    }
    let mut ids = Vec::new();
    for file in files {
        let bytes = std::fs::metadata(&file).map_err(Error::file(&file))?.len();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let upload = Upload::new(&name, "fine-tune-results", bytes, state.job.by.clone());
        ledger.put_upload(&upload, file).await?;
        ids.push(upload.id);
    }
    Ok(ids)
}

/// A row a step; what a step has no figure of is empty.
fn table(state: &JobState) -> String {
    let metrics = state
        .events
        .iter()
        .filter_map(|event| event.metrics.as_ref());
    let rows: BTreeMap<u64, &Value> = metrics
        .filter_map(|metrics| Some((metrics["step"].as_u64()?, metrics)))
        .collect();
    let mut text = COLUMNS.join(",") + "\n";
    for metrics in rows.into_values() {
        let cells = COLUMNS.map(|column| match &metrics[column] {
            Value::Null => String::new(),
            figure => figure.to_string(),
        });
        // Into a string it cannot fail.
        let _ = writeln!(text, "{}", cells.join(","));
    }
    text
}
