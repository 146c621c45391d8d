//! Stored completions: `GET /v1/chat/completions`, one of them, and its messages.
//!
//! What is kept is the ledger's own rows; with keys, an app finds those that it asked with its key.

use actix_web::{HttpRequest, HttpResponse, web};
use retune_ledger::{ConversationQuery, Exchange, Role};
use retune_task::ChatMessage;
use retune_wire::calls::Message;
use retune_wire::{Usage, message};
use serde_json::{Value, json};

use super::page::{Page, Rules, listed};
use crate::error::Error;
use crate::keys::Caller;
use crate::state::App;

/// OpenAI's limits for a page.
const LIST: Rules = Rules {
    limit: 20,
    most: 100,
    newest_first: false,
    order: true,
    filters: &["model"],
    metadata: true,
};

pub(crate) async fn list(app: web::Data<App>, http: HttpRequest) -> Result<HttpResponse, Error> {
    let page = Page::read(http.query_string(), &LIST)?;
    let whose = whose(&http);
    let after = match &page.after {
        Some(id) => Some(find(&app, id, whose.as_deref()).await?.cursor()),
        None => None,
    };
    let query = ConversationQuery {
        api_key_id: whose,
        model: page.filter("model").map(str::to_owned),
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
