//! `/v1/fine_tuning/jobs`: training on an uploaded file, as OpenAI's API has it.
//!
//! Here a job is only asked for, followed and halted: it is files in the ledger, and a process that trains reads them. What it makes
//! answers by its name once it is there, like any adapter.

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use rand::Rng;
use retune_ledger::{
    Job, JobAction, JobCheckpoint, JobEntry, JobEvent, JobLevel, JobMethod, JobState, JobStatus,
};
use retune_task::ModelName;
use retune_wire::{Hyperparameters, JobRequest, Method};
use serde_json::{Value, json};

use super::body;
use super::page::{Page, Rules};
use crate::error::Error;
use crate::keys::Caller;
use crate::state::App;

/// OpenAI's limits.
const JOBS: Rules = Rules {
    limit: 20,
    most: 100,
    newest_first: true,
    order: false,
    filters: &[],
    metadata: true,
};
const EVENTS: Rules = Rules {
    metadata: false,
    ..JOBS
};
const CHECKPOINTS: Rules = Rules {
    limit: 10,
    ..EVENTS
};

/// `POST /v1/fine_tuning/jobs`.
pub(crate) async fn create(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let params = body::params(payload, app.config.server.max_body_bytes).await?;
    let request = JobRequest::read(params)?;
    let base = app.table.load().base.clone();
    let from = from(&app, &base, &request.model).await?;
    let id = Job::new_id();
    let task = task(&app, &base, request.suffix.as_deref(), &id)?;
    let files = [
        ("training_file", Some(&request.training_file)),
        ("validation_file", request.validation_file.as_ref()),
    ];
    for (param, file) in files {
        if let Some(file) = file {
            trains(&app, param, file).await?;
        }
    }
    let job = Job {
        id,
        created: Utc::now(),
        by: Caller::of(&http).key_id,
        model: base,
        from: from.map(|name| name.to_string()),
        method: method(request.method),
        task,
        suffix: request.suffix,
        training_file: request.training_file,
        validation_file: request.validation_file,
        seed: request
            .seed
            .unwrap_or_else(|| rand::rng().random_range(0..=i32::MAX as u64)),
        n_epochs: request.hyperparameters.n_epochs,
        batch_size: request.hyperparameters.batch_size,
        learning_rate_multiplier: request.hyperparameters.learning_rate_multiplier,
        beta: request.hyperparameters.beta,
        metadata: request.metadata,
    };
    app.ledger.put_job(&job).await?;
    let created = said(format!("Created fine-tuning job: {}", job.id));
    app.ledger.add_to_job(&job.id, 0, &created).await?;
    tracing::info!(
        job = job.id,
        task = job.task,
        "a fine-tuning job was created"
    );
    Ok(HttpResponse::Ok().json(object(&find(&app, &job.id).await?)))
}

/// The adapter that a model's name names, to go on from; none where it is the base.
async fn from(app: &App, base: &str, model: &str) -> Result<Option<ModelName>, Error> {
    if model == base {
        return Ok(None);
    }
    if let Some(name @ ModelName::Adapter { .. }) = ModelName::parse(model)
        && let ModelName::Adapter { task, number } = &name
    {
        let adapters = app.ledger.adapters(task).await?;
        if adapters.iter().any(|adapter| adapter.number == *number) {
            return Ok(Some(name));
        }
    }
    let message = format!(
        "The model '{model}' cannot be fine-tuned here: expected '{base}', or an adapter of it such as 'ft:{base}:retune:support:1'."
    );
    Err(Error::param("model", "model_not_available", message))
}

fn method(method: Method) -> JobMethod {
    match method {
        Method::Supervised => JobMethod::Supervised,
        Method::Dpo => JobMethod::Dpo,
    }
}

/// The task that a job's adapters belong to.
fn task(app: &App, base: &str, suffix: Option<&str>, id: &str) -> Result<String, Error> {
    let refused = |what: String| Err(Error::param("suffix", "invalid_value", what));
    let Some(suffix) = suffix.filter(|suffix| !suffix.is_empty()) else {
        return Ok(id.get(..18).unwrap_or(id).to_owned());
    };
    let Some(task) = ModelName::task_of_suffix(suffix) else {
        return refused(format!(
            "Invalid 'suffix': '{suffix}' has no letter and no digit (a to z, 0 to 9) to make a name of."
        ));
    };
    if app.config.tasks.iter().any(|known| known.name == task) {
        return refused(format!(
            "Invalid 'suffix': '{task}' is a task of this server's configuration, whose adapters `retune retrain` makes; expected another one."
        ));
    }
    if task == base || task == "base" {
        return refused(format!(
            "Invalid 'suffix': '{task}' is the base model's name; expected another one."
        ));
    }
    Ok(task)
}

/// Refuses a file that is not there, or not for training.
async fn trains(app: &App, param: &str, file: &str) -> Result<(), Error> {
    let refused = |what: &str| {
        let message = format!("Invalid '{param}': the file '{file}' {what}.");
        Error::param(param, "invalid_file", message)
    };
    match app.ledger.upload(file).await? {
        None => Err(refused("does not exist")),
        Some(upload) if upload.purpose != "fine-tune" => {
            Err(refused("has not the purpose 'fine-tune'"))
        }
        Some(_) => Ok(()),
    }
}

/// `GET /v1/fine_tuning/jobs`.
pub(crate) async fn list(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    let page = Page::read(http.query_string(), &JOBS)?;
    let mut jobs = Vec::new();
    for id in app.ledger.job_ids().await? {
        jobs.extend(app.ledger.job(&id).await?);
    }
    jobs.retain(|state| {
        let has = |(key, value): &(String, String)| {
            let metadata = state.job.metadata.as_ref();
            metadata.is_some_and(|metadata| metadata[key] == value.as_str())
        };
        page.metadata.iter().all(has)
    });
    jobs.sort_by(|a, b| (a.job.created, &a.job.id).cmp(&(b.job.created, &b.job.id)));
    page.of(jobs.iter().map(object).collect())
}

/// `GET /v1/fine_tuning/jobs/{id}`.
pub(crate) async fn one(app: web::Data<App>, id: web::Path<String>) -> Result<HttpResponse, Error> {
    Ok(HttpResponse::Ok().json(object(&find(&app, &id).await?)))
}

/// `GET /v1/fine_tuning/jobs/{id}/events`.
pub(crate) async fn events(
    app: web::Data<App>,
    http: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let page = Page::read(http.query_string(), &EVENTS)?;
    let state = find(&app, &id).await?;
    let numbered = state.events.iter().enumerate();
    page.of(numbered
        .map(|(n, event)| event_object(&state.job, n, event))
        .collect())
}

/// `GET /v1/fine_tuning/jobs/{id}/checkpoints`.
pub(crate) async fn checkpoints(
    app: web::Data<App>,
    http: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let page = Page::read(http.query_string(), &CHECKPOINTS)?;
    let state = find(&app, &id).await?;
    let checkpoints = state.checkpoints.iter();
    page.of(checkpoints
        .map(|one| checkpoint_object(&state.job, one))
        .collect())
}

/// `POST /v1/fine_tuning/jobs/{id}/{action}`.
pub(crate) async fn act(
    app: web::Data<App>,
    path: web::Path<(String, String)>,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let (id, action) = path.into_inner();
    let (action, message) = match action.as_str() {
        "cancel" => (JobAction::Cancel, "The job was cancelled."),
        "pause" => (JobAction::Pause, "The job was paused."),
        "resume" => (JobAction::Resume, "The job is to go on."),
        _ => {
            return Err(Error::NotFound(format!(
                "There is no action '{action}': it is one of cancel, pause, resume."
            )));
        }
    };
    body::optional_params(payload, app.config.server.max_body_bytes)
        .await?
        .finish()?;
    loop {
        let state = find(&app, &id).await?;
        let status = action.after(state.status).ok_or_else(|| {
            let message = format!(
                "The job {id} is {} and cannot be asked that.",
                state.status.as_str()
            );
            Error::param("fine_tuning_job_id", "invalid_job_state", message)
        })?;
        let entry = JobEntry {
            status: Some(status),
            ..said(message.to_owned())
        };
        if app.ledger.add_to_job(&id, state.seq, &entry).await? {
            tracing::info!(
                job = id,
                status = status.as_str(),
                "a fine-tuning job was asked to stand elsewhere"
            );
            return Ok(HttpResponse::Ok().json(object(&find(&app, &id).await?)));
        }
    }
}

fn said(message: String) -> JobEntry {
    let at = Utc::now();
    JobEntry {
        at,
        events: vec![JobEvent {
            at,
            level: JobLevel::Info,
            message,
            metrics: None,
        }],
        ..JobEntry::default()
    }
}

async fn find(app: &App, id: &str) -> Result<JobState, Error> {
    let state = app.ledger.job(id).await?;
    state.ok_or_else(|| Error::NotFound(format!("Could not find fine tune: {id}")))
}

/// The job as OpenAI's API has it. Its model is the last epoch's.
fn object(state: &JobState) -> Value {
    let job = &state.job;
    let asked = Hyperparameters {
        n_epochs: job.n_epochs,
        batch_size: job.batch_size,
        learning_rate_multiplier: job.learning_rate_multiplier,
        beta: job.beta,
    };
    let method = match job.method {
        JobMethod::Supervised => Method::Supervised,
        JobMethod::Dpo => Method::Dpo,
    };
    let known = state.settings.map_or(asked, |settings| Hyperparameters {
        n_epochs: Some(settings.n_epochs),
        batch_size: Some(settings.batch_size),
        learning_rate_multiplier: Some(settings.learning_rate_multiplier),
        beta: settings.beta,
    });
    let known = known.object(method);
    let model = match job.from.as_deref().and_then(ModelName::parse) {
        Some(ModelName::Adapter { task, number }) => {
            ModelName::fine_tuned(&job.model, &task, number)
        }
        _ => job.model.clone(),
    };
    let last = state
        .checkpoints
        .last()
        .filter(|_| state.status == JobStatus::Succeeded);
    json!({
        "object": "fine_tuning.job",
        "id": job.id,
        "model": model,
        "created_at": job.created.timestamp(),
        "finished_at": state.finished.map(|at| at.timestamp()),
        "estimated_finish": state.estimated_finish.filter(|_| !state.status.is_end()).map(|at| at.timestamp()),
        "fine_tuned_model": last.map(|last| ModelName::fine_tuned(&job.model, &job.task, last.number)),
        "organization_id": "retune",
        "result_files": state.result_files,
        "status": state.status,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "hyperparameters": known,
        "method": { "type": method.as_str(), method.as_str(): { "hyperparameters": known } },
        "trained_tokens": state.trained_tokens,
        "error": state.error,
        "user_provided_suffix": job.suffix,
        "seed": job.seed,
        "integrations": [],
        "metadata": job.metadata,
    })
}

fn event_object(job: &Job, number: usize, event: &JobEvent) -> Value {
    json!({
        "object": "fine_tuning.job.event",
        "id": format!("ftevent-{}-{number}", hex(job)),
        "created_at": event.at.timestamp(),
        "level": event.level,
        "message": event.message,
        "type": if event.metrics.is_some() { "metrics" } else { "message" },
        "data": event.metrics.clone().unwrap_or_else(|| json!({})),
    })
}

fn checkpoint_object(job: &Job, checkpoint: &JobCheckpoint) -> Value {
    json!({
        "object": "fine_tuning.job.checkpoint",
        "id": format!("ftckpt-{}-{}", hex(job), checkpoint.epoch),
        "created_at": checkpoint.at.timestamp(),
        "fine_tuning_job_id": job.id,
        "fine_tuned_model_checkpoint": ModelName::fine_tuned(&job.model, &job.task, checkpoint.number),
        "step_number": checkpoint.step,
        "metrics": checkpoint.metrics,
    })
}

fn hex(job: &Job) -> &str {
    job.id.strip_prefix("ftjob-").unwrap_or(&job.id)
}
