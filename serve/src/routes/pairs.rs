//! `/v1/pairs`: two answers to one prompt, for people to say which is better.
//!
//! Nothing here tells which of them is the candidate's: neither names nor ids of the answers, nor when they were given. Each rater gets the
//! pairs in an order of their own, so that few are asked of two people at once; a pair has one vote, the first.

use std::collections::HashSet;
use std::time::Instant;

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::Utc;
use retune_ledger::{Exchange, ExchangeQuery, Pair, PairVote, Pairs, Voted};
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
    let sets = open(&app, page.filter("task")).await?;
    let mut waiting: Vec<(&Pairs, &Pair)> = Vec::new();
    let mut asked = 0;
    for (pairs, voted) in &sets {
        asked += pairs.asked().count();
        let of = pairs.asked().filter(|pair| !voted.contains(&pair.id));
        waiting.extend(of.map(|pair| (pairs, pair)));
    }
    let rater = caller.key_id.unwrap_or_default();
    let place = |id: &str| retune_task::sha256(&format!("pairs\n{rater}\n{id}"));
    waiting.sort_by_cached_key(|(_, pair)| place(&pair.id));
    // One that has a vote by now has its place in the order still.
    let after = page.after.as_deref().map(place);
    let is_past = |id: &str| after.as_ref().is_some_and(|after| place(id) <= *after);
    let mut rest = waiting.iter().filter(|(_, pair)| !is_past(&pair.id));
    let mut data = Vec::new();
    for (pairs, pair) in rest.by_ref().take(MOST_LOOKED_AT) {
        data.extend(shown(&app, pairs, pair).await?);
        if data.len() == page.limit {
            break;
        }
    }
    Ok(HttpResponse::Ok().json(json!({
        "object": "list",
        "data": data,
        "has_more": rest.next().is_some(),
        "waiting": waiting.len(),
        "voted": asked - waiting.len(),
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
    let sets = open(&app, None).await?;
    let of = |pairs: &Pairs| pairs.asked().any(|pair| pair.id == *id);
    let (pairs, _) = sets
        .iter()
        .find(|(pairs, _)| of(pairs))
        .ok_or_else(|| unknown(&id))?;
    let vote = PairVote {
        at: Utc::now(),
        by: caller.key_id,
        choice: said.choice,
        left: said.left,
        right: said.right,
    };
    match app.ledger.vote(pairs, &id, &vote).await? {
        Voted::Kept => {
            let task = pairs.task.as_str();
            app.metrics.pair_votes.with_label_values(&[task]).inc();
            Ok(HttpResponse::Created().json(json!({ "id": *id, "choice": vote.choice })))
        }
        Voted::Late => Err(Error::Conflict(format!(
            "The pair '{id}' has a vote already: GET /v1/pairs lists those that have none."
        ))),
        Voted::Ended => Err(unknown(&id)),
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

/// A pair with its texts; none where somebody was forgotten who had asked.
async fn shown(app: &App, pairs: &Pairs, pair: &Pair) -> Result<Option<Value>, Error> {
    let left = exchange(app, pair.left.as_deref()).await?;
    let right = exchange(app, pair.right.as_deref()).await?;
    let (Some(left), Some(right)) = (left, right) else {
        return Ok(None);
    };
    Ok(Some(json!({
        "id": pair.id,
        "object": "pair",
        "task": pairs.task,
        "criteria": pairs.criteria,
        "messages": left.messages,
        "left": left.answer.unwrap_or_default(),
        "right": right.answer.unwrap_or_default(),
    })))
}

async fn exchange(app: &App, id: Option<&str>) -> Result<Option<Exchange>, Error> {
    let Some(id) = id else { return Ok(None) };
    let query = ExchangeQuery {
        request_id: Some(id.to_owned()),
        limit: Some(1),
        ..ExchangeQuery::default()
    };
    Ok(app.ledger.exchanges(&query).await?.pop())
}
