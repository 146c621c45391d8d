//! `/v1/pairs`: two answers to one prompt, for people to say which is better.
//!
//! Nothing here tells which of them is the candidate's: neither names nor ids of the answers, nor when they were given. Each rater gets the
//! pairs in an order of their own, so that few are asked of two people at once; a pair has one vote, the first.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use retune_ledger::{Exchange, Pair, PairVote, Pairs, Voted};
use retune_task::ChatMessage;
use serde_json::{Value, json};

use super::body;
use super::page::{Page, Rules};
use crate::error::Error;
use crate::keys::Caller;
use crate::state::App;

const LIST: Rules = Rules {
    limit: 10,
    most: 50,
    newest_first: false,
    order: false,
    filters: &["task"],
    metadata: false,
};

/// Pairs whose texts are looked for, for one page: of those that are too old to be kept there is none.
const MOST_LOOKED_AT: usize = 100;

/// `GET /v1/pairs`: some that wait.
pub(crate) async fn list(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    let caller = Caller::of(&http);
    app.rates.admit(caller.key_id.as_deref(), Instant::now())?;
    let page = Page::read(http.query_string(), &LIST)?;
    let wanted = Wanted {
        task: page.filter("task"),
        after: page.after.as_deref(),
        limit: page.limit,
    };
    let waiting = waiting(&app, &caller, &wanted).await?;
    let data: Vec<Value> = waiting.pairs.iter().map(Shown::item).collect();
    Ok(HttpResponse::Ok().json(json!({
        "object": "list",
        "data": data,
        "has_more": waiting.has_more,
        "waiting": waiting.waiting,
        "voted": waiting.voted,
    })))
}

/// `POST /v1/pairs/{id}`: which is better.
pub(crate) async fn vote(
    app: web::Data<App>,
    http: HttpRequest,
    id: web::Path<String>,
    payload: web::Payload,
) -> Result<HttpResponse, Error> {
    let caller = Caller::of(&http);
    app.rates.admit(caller.key_id.as_deref(), Instant::now())?;
    let params = body::params(payload, app.config.server.max_body_bytes).await?;
    let said = retune_wire::Comparison::read(params)?;
    let choice = said.choice;
    cast(&app, caller, &id, said).await?;
    Ok(HttpResponse::Created().json(json!({ "id": *id, "choice": choice })))
}

/// Which pairs somebody is to be shown.
pub(crate) struct Wanted<'a> {
    pub(crate) task: Option<&'a str>,
    /// Those behind this one in the rater's order.
    pub(crate) after: Option<&'a str>,
    pub(crate) limit: usize,
}

/// Pairs that wait for a rater.
pub(crate) struct Waiting {
    pub(crate) pairs: Vec<Shown>,
    pub(crate) has_more: bool,
    /// All that have no vote.
    pub(crate) waiting: usize,
    /// All that have one.
    pub(crate) voted: usize,
}

/// A pair with its texts, and nothing of whose they are.
pub(crate) struct Shown {
    pub(crate) id: String,
    pub(crate) task: String,
    pub(crate) criteria: Option<String>,
    pub(crate) messages: Option<Vec<ChatMessage>>,
    pub(crate) left: String,
    pub(crate) right: String,
}

impl Shown {
    fn item(&self) -> Value {
        json!({
            "id": self.id,
            "object": "pair",
            "task": self.task,
            "criteria": self.criteria,
            "messages": self.messages,
            "left": self.left,
            "right": self.right,
        })
    }
}

/// The next pairs for a rater, in an order of their own.
pub(crate) async fn waiting(
    app: &App,
    caller: &Caller,
    wanted: &Wanted<'_>,
) -> Result<Waiting, Error> {
    let sets = open(app, wanted.task).await?;
    let mut waiting: Vec<(&Pairs, &Pair)> = Vec::new();
    let mut asked = 0;
    for (pairs, voted) in &sets {
        asked += pairs.asked().count();
        let of = pairs.asked().filter(|pair| !voted.contains(&pair.id));
        waiting.extend(of.map(|pair| (pairs, pair)));
    }
    let rater = caller.key_id.as_deref().unwrap_or_default();
    let place = |id: &str| retune_task::sha256(&format!("pairs\n{rater}\n{id}"));
    waiting.sort_by_cached_key(|(_, pair)| place(&pair.id));
    // One that has a vote by now has its place in the order still.
    let after = wanted.after.map(place);
    let is_past = |id: &str| after.as_ref().is_some_and(|after| place(id) <= *after);
    let rest = waiting.iter().filter(|(_, pair)| !is_past(&pair.id));
    let rest: Vec<_> = rest.collect();
    let (mut shown, mut looked_at) = (Vec::new(), 0);
    // As many as are wanted, and more where texts are gone.
    for some in rest.chunks(wanted.limit.max(1)) {
        if shown.len() >= wanted.limit || looked_at >= MOST_LOOKED_AT {
            break;
        }
        let texts = texts(app, some.iter().map(|(_, pair)| *pair)).await?;
        for (pairs, pair) in some {
            if shown.len() == wanted.limit {
                break;
            }
            looked_at += 1;
            shown.extend(with_texts(pairs, pair, &texts));
        }
    }
    Ok(Waiting {
        pairs: shown,
        has_more: looked_at < rest.len(),
        waiting: waiting.len(),
        voted: asked - waiting.len(),
    })
}

/// Keeps what somebody said of a pair.
pub(crate) async fn cast(
    app: &App,
    caller: Caller,
    id: &str,
    said: retune_wire::Comparison,
) -> Result<(), Error> {
    let sets = open(app, None).await?;
    let of = |pairs: &Pairs| pairs.asked().any(|pair| pair.id == id);
    let (pairs, _) = sets
        .iter()
        .find(|(pairs, _)| of(pairs))
        .ok_or_else(|| unknown(id))?;
    let vote = PairVote {
        at: Utc::now(),
        by: caller.key_id,
        choice: said.choice,
        left: said.left,
        right: said.right,
    };
    match app.ledger.vote(pairs, id, &vote).await? {
        Voted::Kept => {
            let task = pairs.task.as_str();
            app.metrics.pair_votes.with_label_values(&[task]).inc();
            Ok(())
        }
        Voted::Late => Err(Error::Conflict(format!(
            "The pair '{id}' has a vote already: GET /v1/pairs lists those that have none."
        ))),
        Voted::Ended => Err(unknown(id)),
    }
}

fn unknown(id: &str) -> Error {
    Error::NotFound(format!(
        "No pair '{id}' waits here: GET /v1/pairs lists those that do."
    ))
}

/// Candidates' pairs that wait, of a task or of all, each with the ids of those that have a vote.
async fn open(app: &App, task: Option<&str>) -> Result<Vec<(Pairs, HashSet<String>)>, Error> {
    let tasks = app.config.tasks.iter().map(|task| task.name.as_str());
    let tasks: Vec<&str> = tasks
        .filter(|name| task.is_none_or(|task| task == *name))
        .collect();
    if let Some(task) = task.filter(|_| tasks.is_empty()) {
        return Err(Error::param(
            "task",
            "invalid_value",
            format!("There is no task '{task}'."),
        ));
    }
    let mut sets = Vec::new();
    for task in tasks {
        for pairs in app.ledger.open_pairs(task, Utc::now()).await? {
            let voted = app.ledger.voted(task, pairs.number).await?;
            sets.push((pairs, voted.into_iter().collect()));
        }
    }
    Ok(sets)
}

/// The exchanges of some pairs, by their ids.
async fn texts<'a>(
    app: &App,
    pairs: impl Iterator<Item = &'a Pair>,
) -> Result<HashMap<String, Exchange>, Error> {
    let ids: Vec<&str> = pairs
        .flat_map(|pair| [pair.left.as_deref(), pair.right.as_deref()])
        .flatten()
        .collect();
    let found = app.ledger.exchanges_of(&ids).await?;
    Ok(found
        .into_iter()
        .map(|row| (row.request_id.clone(), row))
        .collect())
}

/// None where somebody was forgotten who had asked.
fn with_texts(pairs: &Pairs, pair: &Pair, texts: &HashMap<String, Exchange>) -> Option<Shown> {
    let left = texts.get(pair.left.as_deref()?)?;
    let right = texts.get(pair.right.as_deref()?)?;
    Some(Shown {
        id: pair.id.clone(),
        task: pairs.task.clone(),
        criteria: pairs.criteria.clone(),
        messages: left.messages.clone(),
        left: left.answer.clone().unwrap_or_default(),
        right: right.answer.clone().unwrap_or_default(),
    })
}
