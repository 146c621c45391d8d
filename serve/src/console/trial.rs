//! One question to the base, the champion and the candidate.

use std::time::Instant;

use actix_web::{HttpRequest, HttpResponse, web};
use retune_console::Place;
use retune_console::trial::{Answer, Page};
use retune_ledger::Stage;
use retune_task::{ModelName, Task};
use retune_wire::Params;
use serde_json::json;

use super::form::Fields;
use super::{frame, page, query, task, task_names};
use crate::error::Error;
use crate::routes::chat;
use crate::state::App;

/// `GET /console/try`.
pub(super) async fn show(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    let fields = query(&http);
    let task = task(&app, fields.text("task"))?;
    let models = models(&app, task).await?;
    shown(&app, &http, task, String::new(), models)
}

fn shown(
    app: &App,
    http: &HttpRequest,
    task: &Task,
    message: String,
    answers: Vec<Answer>,
) -> Result<HttpResponse, Error> {
    page(&Page {
        frame: frame(app, http, Place::Try),
        tasks: task_names(app),
        task: task.name.clone(),
        message,
        answers,
    })
}

/// `POST /console/try`: all answers, whole.
pub(super) async fn ask(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let fields = Fields::of_form(&app, &http, payload).await?;
    let task = task(&app, fields.text("task"))?;
    let message = message(&fields)?;
    let mut answers = models(&app, task).await?;
    for answer in &mut answers {
        let began = Instant::now();
        let request = request(&answer.model, &message, false)?;
        match chat::tried_text(&app, &http, request).await {
            Ok((text, format)) => {
                let took = began.elapsed().as_millis();
                answer.said = format!("all after {took} ms; format {format}");
                answer.text = text;
            }
            Err(error) => answer.said = error.seen().message,
        }
    }
    shown(&app, &http, task, message, answers)
}

/// `POST /console/try/answer`: one answer, as an event stream; errors are the API's.
pub(super) async fn answer(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let fields = Fields::of_form(&app, &http, payload).await?;
    let request = request(fields.required("model")?, &message(&fields)?, true)?;
    chat::tried(&app, &http, request).await
}

fn message(fields: &Fields) -> Result<String, Error> {
    fields.required("message")?;
    Ok(fields.lines("message").unwrap_or_default())
}

fn request(model: &str, message: &str, stream: bool) -> Result<Params, Error> {
    let request = json!({
        "model": model,
        "messages": [{ "role": "user", "content": message }],
        "stream": stream,
    });
    Ok(Params::parse(request.to_string().as_bytes())?)
}

/// Whom to ask: each once.
async fn models(app: &App, task: &Task) -> Result<Vec<Answer>, Error> {
    let stages = app.ledger.stages(&task.name).await?;
    let name = |number| ModelName::of(&task.name, number).to_string();
    let mut models = vec![(name(None), "the base with the full prompt")];
    if stages.champion.is_some() {
        models.push((name(stages.champion), "the champion"));
    }
    let table = app.table.load();
    let adapters = table.task(&task.name).map(|routes| &routes.adapters);
    let newest = adapters.into_iter().flat_map(|all| all.keys().rev());
    let mut newest =
        newest.filter(|number| matches!(stages.stage(**number), Stage::Candidate | Stage::Canary));
    models.extend(
        newest
            .next()
            .map(|number| (name(Some(*number)), "the candidate")),
    );
    let answer = |(model, is)| Answer {
        model,
        is,
        text: String::new(),
        said: String::new(),
    };
    Ok(models.into_iter().map(answer).collect())
}
