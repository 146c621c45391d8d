//! What serves, how it is, and what waits for somebody.

use std::time::{Duration, Instant};

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{TimeDelta, Utc};
use retune_console::Place;
use retune_console::overview::{Known, Page, Standing, TaskCard, serves};
use retune_ledger::{Role, Run, TrafficQuery};
use retune_task::Task;

use super::{frame, page, see};
use crate::error::Error;
use crate::keys::Caller;
use crate::state::App;

/// How long what was gathered is shown.
const FRESH: Duration = Duration::from_secs(3);

/// `GET /console`.
pub(super) async fn show(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    if Caller::of(&http).role < Role::Admin {
        return Ok(see("/console/review"));
    }
    let tasks = app.overview.tasks(&app).await?;
    page(&Page {
        frame: frame(&app, &http, Place::Overview),
        tasks,
    })
}

/// What was gathered last: however many look at it at once, it is gathered for one of them.
#[derive(Default)]
pub(crate) struct Overview(tokio::sync::Mutex<Option<(Instant, Vec<TaskCard>)>>);

impl Overview {
    async fn tasks(&self, app: &App) -> Result<Vec<TaskCard>, Error> {
        let mut last = self.0.lock().await;
        if let Some((at, tasks)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return Ok(tasks.clone());
        }
        let runs = app.ledger.runs().await?;
        let mut tasks = Vec::new();
        for task in &app.config.tasks {
            tasks.push(card(app, task, &runs).await?);
        }
        *last = Some((Instant::now(), tasks.clone()));
        Ok(tasks)
    }
}

async fn card(app: &App, task: &Task, runs: &[Run]) -> Result<TaskCard, Error> {
    let (ledger, now) = (&app.ledger, Utc::now());
    let stages = ledger.stages(&task.name).await?;
    let traffic = TrafficQuery {
        task: task.name.clone(),
        since: now - TimeDelta::days(1),
    };
    let mut alarms = Vec::new();
    for trigger in ledger.triggers(Some(&task.name)).await? {
        if !serves(&task.name, &stages, &trigger.adapter) {
            continue;
        }
        let word = ledger.last_word(&trigger).await?;
        alarms.push(Standing {
            is_acknowledged: word.is_some_and(|word| word.quiets(now)),
            kind: trigger.kind.to_string(),
            adapter: trigger.adapter,
            alarm: trigger.alarm,
        });
    }
    Ok(TaskCard::of(Known {
        task,
        stages: &stages,
        streams: ledger.stream_states(&task.name).await?,
        alarms,
        traffic: ledger.traffic(&traffic).await?,
        runs: runs
            .iter()
            .filter(|run| run.task == task.name)
            .cloned()
            .collect(),
        pairs: ledger.pairs_waiting(&task.name, now).await?,
        prices: &app.config.cost,
        budget: app.config.monitor.false_alarms_per_quarter,
        now,
    }))
}
