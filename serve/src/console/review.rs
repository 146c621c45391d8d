//! Answers to rate and correct.
//!
//! What waits is ranked once a minute, from the newest answers; what was said since is asked at each page. Who passed what over is kept in memory: at
//! another replica, or after a restart, it is shown once more.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use chrono::{DateTime, TimeDelta, Utc};
use retune_console::overview::serves;
use retune_console::review::{Last, Page, Shown, Written};
use retune_console::{Place, drift, queue};
use retune_ledger::{ConversationQuery, FeedbackQuery, Purpose};
use retune_task::{Check, Task};
use retune_wire::Params;
use serde_json::json;

use super::form::Fields;
use super::{Seat, frame, page_with, query, quoted, see, task, task_names};
use crate::error::Error;
use crate::keys::Caller;
use crate::routes::feedback;
use crate::state::App;

/// Answers that are older wait no more.
const DAYS: i64 = 30;
/// The newest answers that are ranked, and of what a model wrote for the dataset; beside them what alarms name.
const RANKED: usize = 1_000;
const WRITTEN: usize = 500;
/// How long a ranking is good.
const FRESH: Duration = Duration::from_secs(60);
/// Rows get into the log some time after their own.
const SETTLED: TimeDelta = TimeDelta::seconds(5);
/// Answers passed over that are remembered of a session, and sessions.
const PASSED_OVER: usize = 500;
const SESSIONS: usize = 200;
/// As which feedback from here is known.
const SOURCE: &str = "console";

/// What is remembered between pages.
#[derive(Default)]
pub(crate) struct Reviews {
    rankings: Mutex<HashMap<String, Arc<Ranking>>>,
    /// One is made at a time.
    ranking: tokio::sync::Mutex<()>,
    passed_over: Mutex<VecDeque<(String, VecDeque<String>)>>,
}

/// What waits of a task, as it was seen at a moment.
struct Ranking {
    made: Instant,
    seen: DateTime<Utc>,
    waiting: Vec<queue::Waiting>,
    /// Who has said something of which of it at the console.
    said: HashSet<(String, Option<String>)>,
}

impl Reviews {
    fn of(&self, task: &str) -> Option<Arc<Ranking>> {
        let rankings = held(&self.rankings);
        let ranking = rankings.get(task)?;
        (ranking.made.elapsed() < FRESH).then(|| Arc::clone(ranking))
    }

    fn keep(&self, task: &str, ranking: Ranking) -> Arc<Ranking> {
        let ranking = Arc::new(ranking);
        let mut rankings = held(&self.rankings);
        rankings.insert(task.to_owned(), Arc::clone(&ranking));
        ranking
    }

    fn pass_over(&self, session: &str, id: &str) {
        let mut all = held(&self.passed_over);
        let place = all.iter().position(|(of, _)| of == session);
        let mut ids = place
            .and_then(|place| all.remove(place))
            .map_or_else(VecDeque::new, |(_, ids)| ids);
        ids.push_back(id.to_owned());
        keep_last(&mut ids, PASSED_OVER);
        all.push_back((session.to_owned(), ids));
        keep_last(&mut all, SESSIONS);
    }

    fn passed_over(&self, session: &str) -> HashSet<String> {
        let all = held(&self.passed_over);
        let ids = all.iter().find(|(of, _)| of == session);
        ids.map_or_else(HashSet::new, |(_, ids)| ids.iter().cloned().collect())
    }
}

/// What a panic elsewhere has left is as good as it was.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the last so many.
fn keep_last<T>(all: &mut VecDeque<T>, most: usize) {
    while all.len() > most {
        all.pop_front();
    }
}

async fn ranking(app: &App, task: &Task) -> Result<Arc<Ranking>, Error> {
    if let Some(ranking) = app.reviews.of(&task.name) {
        return Ok(ranking);
    }
    // Whoever comes meanwhile waits for it.
    let _one = app.reviews.ranking.lock().await;
    if let Some(ranking) = app.reviews.of(&task.name) {
        return Ok(ranking);
    }
    let (made, seen) = (Instant::now(), Utc::now());
    let of_apps = ConversationQuery {
        task: Some(task.name.clone()),
        since: Some(seen - TimeDelta::days(DAYS)),
        newest_first: true,
        limit: Some(RANKED),
        ..ConversationQuery::default()
    };
    let written = ConversationQuery {
        purpose: Purpose::Synthetic,
        since: None,
        limit: Some(WRITTEN),
        ..of_apps.clone()
    };
    let stages = app.ledger.stages(&task.name).await?;
    let alarms = app.ledger.triggers(Some(&task.name)).await?;
    let standing = alarms
        .iter()
        .filter(|alarm| serves(&task.name, &stages, &alarm.adapter));
    let named: HashSet<String> = standing.flat_map(drift::named).collect();
    let mut exchanges = app.ledger.conversations(&of_apps).await?;
    exchanges.extend(app.ledger.conversations(&written).await?);
    let there: HashSet<&str> = exchanges
        .iter()
        .map(|row| row.request_id.as_str())
        .collect();
    let missing = named.iter().map(String::as_str);
    let missing: Vec<&str> = missing.filter(|id| !there.contains(id)).collect();
    let missing = app.ledger.exchanges_of(&missing).await?;
    exchanges.extend(missing.into_iter().filter(|row| row.messages.is_some()));
    let ids = exchanges.iter().map(|row| row.request_id.clone());
    let said = FeedbackQuery {
        of: Some(ids.collect()),
        ..FeedbackQuery::default()
    };
    let mut feedback = app.ledger.feedback(&said).await?;
    app.ledger.keys().await?.withhold_corrections(&mut feedback);
    let waiting = queue::rank(&exchanges, &feedback, &named, task.retrain.rating_at_least);
    let here = feedback
        .into_iter()
        .filter(|said| said.source.as_deref() == Some(SOURCE));
    let said = here.map(|said| (said.request_id, said.rater)).collect();
    let ranking = Ranking {
        made,
        seen,
        waiting,
        said,
    };
    Ok(app.reviews.keep(&task.name, ranking))
}

/// What to show, and what was wrong with what was sent.
struct Asked<'a> {
    task: &'a Task,
    /// This one, whatever waits.
    id: Option<&'a str>,
    last: Option<Last>,
    refused: Option<String>,
    written: Written,
}

/// `GET /console/review`.
pub(super) async fn show(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    let fields = query(&http);
    let last = fields
        .text("last")
        .filter(|id| app.ledger.is_own_request_id(id));
    let asked = Asked {
        task: task(&app, fields.text("task"))?,
        id: match fields.text("id") {
            Some(id) => Some(own(&app, id)?),
            None => None,
        },
        last: last.map(|id| Last {
            request_id: id.to_owned(),
            said: match fields.text("rating").and_then(|n| n.parse::<u8>().ok()) {
                Some(rating) => format!("You rated the last one {rating}."),
                None => "What you said of the last one is kept.".to_owned(),
            },
        }),
        refused: None,
        written: Written::default(),
    };
    shown(&app, &http, StatusCode::OK, asked).await
}

async fn shown(
    app: &App,
    http: &HttpRequest,
    status: StatusCode,
    asked: Asked<'_>,
) -> Result<HttpResponse, Error> {
    let caller = Caller::of(http);
    let ranking = ranking(app, asked.task).await?;
    let fresh = FeedbackQuery {
        since: Some(ranking.seen - SETTLED),
        ..FeedbackQuery::default()
    };
    let fresh = app.ledger.feedback(&fresh).await?;
    let mut over: HashSet<String> = app.reviews.passed_over(&session(http));
    over.extend(fresh.into_iter().map(|said| said.request_id));
    let rater = caller.key_id.clone();
    let is_over =
        |id: &str| over.contains(id) || ranking.said.contains(&(id.to_owned(), rater.clone()));
    let waiting = ranking
        .waiting
        .iter()
        .filter(|one| !is_over(&one.request_id));
    let waiting = waiting.count();
    let who = rater.as_deref().unwrap_or_default();
    let next = queue::next(&ranking.waiting, who, is_over);
    let (id, why) = match asked.id {
        Some(id) => (Some(id), &[][..]),
        None => (
            next.map(|one| one.request_id.as_str()),
            next.map_or(&[][..], |one| &one.why),
        ),
    };
    let row = match id {
        Some(id) => app.ledger.exchange(id).await?,
        None => None,
    };
    let of_task = row.filter(|row| row.task.as_deref() == Some(&asked.task.name));
    page_with(
        status,
        &Page {
            frame: frame(app, http, Place::Review),
            tasks: task_names(app),
            task: asked.task.name.clone(),
            shown: of_task.map(|row| Shown::of(row, why, asked.written, Utc::now())),
            waiting,
            last: asked.last,
            refused: asked.refused,
        },
    )
}

/// `POST /console/review`.
pub(super) async fn judge(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let caller = Caller::of(&http);
    app.rates.admit(caller.key_id.as_deref(), Instant::now())?;
    let fields = Fields::of_form(&app, &http, payload).await?;
    let task = task(&app, fields.text("task"))?;
    let id = own(&app, fields.required("id")?)?;
    let rating = fields
        .text("rating")
        .and_then(|rating| rating.parse::<i64>().ok());
    let correction = corrected(&app, id, fields.lines("correction")).await?;
    let comment = fields.lines("comment");
    let rubric = fields.marks("");
    let refused = match &correction {
        Some(correction) => objection(task, correction),
        None if rating.is_none() && comment.is_none() && rubric.is_empty() => {
            Some("Nothing was said of it: rate it, correct it, or say something.".to_owned())
        }
        None => None,
    };
    if let Some(refused) = refused {
        let asked = Asked {
            task,
            id: Some(id),
            last: None,
            refused: Some(refused),
            written: Written {
                correction,
                comment,
                marks: rubric,
            },
        };
        return shown(&app, &http, StatusCode::UNPROCESSABLE_ENTITY, asked).await;
    }
    // What is null was not said.
    let said = json!({
        "completion_id": id, "source": SOURCE, "rating": rating, "correction": correction, "comment": comment,
        "rubric": (!rubric.is_empty()).then_some(rubric),
    });
    let said = Params::parse(said.to_string().as_bytes())?;
    feedback::keep(&app, caller, retune_wire::Feedback::read(said)?).await?;
    let rating = rating.map_or_else(String::new, |rating| format!("&rating={rating}"));
    let (task, id) = (quoted(&task.name), quoted(id));
    Ok(see(format!(
        "/console/review?task={task}&last={id}{rating}"
    )))
}

/// What somebody put in the answer's place, if it is another.
async fn corrected(app: &App, id: &str, written: Option<String>) -> Result<Option<String>, Error> {
    let Some(written) = written.filter(|written| !written.trim().is_empty()) else {
        return Ok(None);
    };
    let answer = app.ledger.exchange(id).await?.and_then(|row| row.answer);
    let same = answer.is_some_and(|answer| as_browsers_have_it(&answer) == written);
    Ok(Some(written).filter(|_| !same))
}

/// A text after it was in a form: its lines end with one character, and what HTML has no way to write is replaced.
fn as_browsers_have_it(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    text.replace('\0', "\u{fffd}")
}

/// Why a correction cannot be what the task answers.
fn objection(task: &Task, correction: &str) -> Option<String> {
    match task.format.as_ref()?.check(correction) {
        Check::Valid => None,
        Check::Invalid { reason, detail } => Some(format!(
            "The correction breaks the task's own format ({reason}): {detail}"
        )),
    }
}

/// `POST /console/review/skip`.
pub(super) async fn skip(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let fields = Fields::of_form(&app, &http, payload).await?;
    let task = task(&app, fields.text("task"))?;
    let id = own(&app, fields.required("id")?)?;
    app.reviews.pass_over(&session(&http), id);
    Ok(see(format!("/console/review?task={}", quoted(&task.name))))
}

/// `POST /console/review/undo`.
pub(super) async fn undo(
    app: web::Data<App>,
    http: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let fields = Fields::of_form(&app, &http, payload).await?;
    let task = task(&app, fields.text("task"))?;
    let id = own(&app, fields.required("id")?)?;
    feedback::take_back(&app, Caller::of(&http), id, SOURCE).await?;
    let (task, id) = (quoted(&task.name), quoted(id));
    Ok(see(format!("/console/review?task={task}&id={id}")))
}

/// An id of an answer that was made here: for others nothing is looked for.
fn own<'a>(app: &App, id: &'a str) -> Result<&'a str, Error> {
    match app.ledger.is_own_request_id(id) {
        true => Ok(id),
        false => Err(Error::NotFound(
            "No such completion was made here.".to_owned(),
        )),
    }
}

fn session(http: &HttpRequest) -> String {
    let extensions = http.extensions();
    let seat = extensions.get::<Seat>();
    seat.map_or_else(String::new, |seat| seat.session.nonce.clone())
}
