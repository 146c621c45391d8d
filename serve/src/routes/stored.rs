//! Stored completions: `GET /v1/chat/completions`, one of them, and its messages.
//!
//! What is kept is the ledger's own rows; with keys, an app finds those that it asked with its key.

use actix_web::{HttpRequest, HttpResponse, web};
use retune_ledger::{ConversationQuery, Exchange, Role};
use retune_task::ChatMessage;
use retune_wire::calls::Message;
use retune_wire::{Refusal, Usage, message};
use serde_json::{Value, json};

use crate::error::Error;
use crate::keys::Caller;
use crate::state::App;

/// OpenAI's limits for a page.
const PAGE: usize = 20;
const MAX_PAGE: usize = 100;

/// A page that was asked for.
struct Page {
    after: Option<String>,
    limit: usize,
    newest_first: bool,
    model: Option<String>,
    metadata: Vec<(String, String)>,
}

pub(crate) async fn list(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    let page = Page::read(http.query_string())?;
    let whose = whose(&http);
    let after = match page.after {
        Some(id) => Some(find(&app, &id, whose.as_deref()).await?.cursor()),
        None => None,
    };
    let query = ConversationQuery {
        api_key_id: whose,
        model: page.model,
        metadata: page.metadata,
        after,
        newest_first: page.newest_first,
        limit: Some(page.limit + 1),
        ..ConversationQuery::default()
    };
    let mut rows = app.ledger.conversations(&query).await?;
    let has_more = rows.len() > page.limit;
    rows.truncate(page.limit);
    Ok(listed(rows.iter().map(stored).collect(), has_more))
}

pub(crate) async fn one(
    app: web::Data<App>,
    http: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let row = find(&app, &id, whose(&http).as_deref()).await?;
    Ok(HttpResponse::Ok().json(stored(&row)))
}

pub(crate) async fn messages(
    app: web::Data<App>,
    http: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, Error> {
    let row = find(&app, &id, whose(&http).as_deref()).await?;
    let message = |(i, message): (usize, &ChatMessage)| json!({ "id": format!("{id}-{i}"), "role": message.role, "content": message.content, "name": message.name });
    let kept = row.messages.as_deref().unwrap_or_default();
    Ok(listed(
        kept.iter().enumerate().map(message).collect(),
        false,
    ))
}

/// A page of things that have an `id`.
fn listed(data: Vec<Value>, has_more: bool) -> HttpResponse {
    let id = |one: Option<&Value>| one.map(|one| one["id"].clone());
    HttpResponse::Ok().json(json!({
        "object": "list",
        "first_id": id(data.first()),
        "last_id": id(data.last()),
        "has_more": has_more,
        "data": data,
    }))
}

/// A logged exchange as the stored completion that it is.
fn stored(row: &Exchange) -> Value {
    let usage = Usage {
        prompt: usize::try_from(row.prompt_tokens).unwrap_or(usize::MAX),
        completion: usize::try_from(row.completion_tokens).unwrap_or(usize::MAX),
    };
    let mut message = message(&Message {
        content: row.answer.clone(),
        calls: Vec::new(),
    });
    if let Some(calls) = &row.tool_calls {
        message["tool_calls"] = calls.clone();
    }
    let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": row.finish_reason });
    json!({
        "id": row.request_id,
        "object": "chat.completion",
        "created": row.ts.timestamp(),
        "model": row.adapter,
        "choices": [choice],
        "usage": usage.object(),
        "metadata": row.metadata.clone().unwrap_or_else(|| json!({})),
        "temperature": row.parameters["temperature"],
        "top_p": row.parameters["top_p"],
        "presence_penalty": row.parameters.get("presence_penalty").cloned().unwrap_or_else(|| json!(0)),
        "frequency_penalty": row.parameters.get("frequency_penalty").cloned().unwrap_or_else(|| json!(0)),
        "seed": row.parameters.get("seed"),
        "tools": null,
        "response_format": null,
        "system_fingerprint": null,
        "service_tier": "default",
        "input_user": row.user,
    })
}

/// The key whose completions the caller may see; none: all of them.
fn whose(http: &HttpRequest) -> Option<String> {
    let caller = Caller::of(http);
    caller.key_id.filter(|_| caller.role < Role::Admin)
}

async fn find(app: &App, id: &str, whose: Option<&str>) -> Result<Exchange, Error> {
    let unknown = || Error::NotFound(format!("No stored completion '{id}' is here."));
    if !app.ledger.is_own_request_id(id) {
        return Err(unknown());
    }
    let query = ConversationQuery {
        request_id: Some(id.to_owned()),
        api_key_id: whose.map(str::to_owned),
        limit: Some(1),
        ..ConversationQuery::default()
    };
    let found = app.ledger.conversations(&query).await?.pop();
    found.ok_or_else(unknown)
}

impl Page {
    fn read(query: &str) -> Result<Self, Error> {
        let mut page = Self {
            after: None,
            limit: PAGE,
            newest_first: false,
            model: None,
            metadata: Vec::new(),
        };
        let pairs =
            web::Query::<Vec<(String, String)>>::from_query(query).map_err(|e| Refusal {
                message: format!("Invalid query: {e}."),
                param: None,
                code: None,
            })?;
        for (key, value) in pairs.into_inner() {
            let wrong = |expected: String| {
                let message =
                    format!("Invalid '{key}': expected {expected}, but got '{value}' instead.");
                Error::param(&key, "invalid_value", message)
            };
            match key.as_str() {
                "after" => page.after = Some(value),
                "model" => page.model = Some(value),
                "limit" => {
                    let limit = value.parse().ok().filter(|n| (1..=MAX_PAGE).contains(n));
                    page.limit = limit
                        .ok_or_else(|| wrong(format!("a whole number from 1 to {MAX_PAGE}")))?;
                }
                "order" => match value.as_str() {
                    "asc" => page.newest_first = false,
                    "desc" => page.newest_first = true,
                    _ => return Err(wrong("'asc' or 'desc'".to_owned())),
                },
                _ => match key
                    .strip_prefix("metadata[")
                    .and_then(|k| k.strip_suffix(']'))
                {
                    Some(name) => page.metadata.push((name.to_owned(), value)),
                    None => {
                        let message = format!("Unrecognized request argument supplied: {key}");
                        return Err(Error::param(&key, "unknown_parameter", message));
                    }
                },
            }
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_page_as_clients_ask_for_it() {
        let page =
            Page::read("limit=3&order=desc&metadata%5Bteam%5D=a%20b&after=x&model=m").unwrap();
        assert_eq!((page.limit, page.newest_first), (3, true));
        assert_eq!(page.metadata, [("team".to_owned(), "a b".to_owned())]);
        assert_eq!(
            (page.after.as_deref(), page.model.as_deref()),
            (Some("x"), Some("m"))
        );
        assert_eq!(Page::read("").unwrap().limit, PAGE);
        for wrong in [
            "limit=0",
            "limit=101",
            "limit=x",
            "order=up",
            "colour=red",
            "metadata[a",
        ] {
            assert!(Page::read(wrong).is_err(), "{wrong}");
        }
    }
}
