//! When each task's schedule last asked for a run: what an operator compares with when one last ended.
//!
//! A time before the task's first exchange had nothing to learn from, and asks for none.

use std::collections::BTreeMap;

use arrow::array::Array;
use chrono::{DateTime, Utc};
use retune_ledger::Ledger;
use retune_task::{Config, Schedule};

use crate::error::Error;
use crate::metrics::Metrics;
use crate::reader::{Answer, quoted, to_time};

/// The tasks that have one.
pub(crate) struct Schedules {
    of: BTreeMap<String, Schedule>,
    /// The time of each one's first exchange, once there is one.
    first: BTreeMap<String, DateTime<Utc>>,
}

impl Schedules {
    pub(crate) fn new(config: &Config) -> Self {
        let tasks = config.tasks.iter();
        let of = tasks.filter_map(|task| Some((task.name.clone(), task.retrain.schedule.clone()?)));
        Self {
            of: of.collect(),
            first: BTreeMap::new(),
        }
    }

    pub(crate) async fn show(
        &mut self,
        ledger: &Ledger,
        metrics: &Metrics,
        now: DateTime<Utc>,
    ) -> Result<(), Error> {
        for (task, schedule) in &self.of {
            let Some(due) = schedule.last(now) else {
                continue;
            };
            if !self.first.contains_key(task) {
                let first = first(ledger, task).await?;
                self.first.extend(first.map(|first| (task.clone(), first)));
            }
            if self.first.get(task).is_some_and(|first| *first < due) {
                metrics.run_due(task, due);
            }
        }
        Ok(())
    }
}

async fn first(ledger: &Ledger, task: &str) -> Result<Option<DateTime<Utc>>, Error> {
    let batches = ledger
        .sql(&format!(
            "select min(ts) as first from exchanges where purpose = 'user' and task = {}",
            quoted(task)
        ))
        .await?;
    for batch in &batches {
        let times = Answer("exchanges").times(batch, "first")?;
        if !times.is_empty() && times.is_valid(0) {
            return to_time(times.value(0)).map(Some);
        }
    }
    Ok(None)
}
