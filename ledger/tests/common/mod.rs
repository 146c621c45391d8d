//! A store's settings and a row with something in each column, for the tests of tables and log alike.

use std::path::Path;

use chrono::{SubsecRound, Utc};
use retune_ledger::{Exchange, Ledger, Purpose};
use retune_task::{ChatMessage, OnLogFailure, Store};
use serde_json::json;

/// Nothing goes into a table by itself.
pub(crate) fn store(folder: &Path) -> Store {
    Store {
        url: format!("file:{}", folder.display()),
        local: folder.join("local").display().to_string(),
        append_rows: 1000,
        append_bytes: 1 << 20,
        append_seconds: 60.0,
        fsync_seconds: 1.0,
        log_bytes: 1 << 30,
        on_log_failure: OnLogFailure::Drop,
        compact_seconds: 0.0,
        keep_days: None,
        query_ballista: None,
        query_memory_bytes: 256 << 20,
    }
}

pub(crate) fn exchange(ledger: &Ledger, text: &str) -> Exchange {
    Exchange {
        request_id: ledger.new_request_id(true),
        replica: ledger.replica().to_owned(),
        seq: 0,
        ts: Utc::now().trunc_subsecs(6),
        purpose: Purpose::User,
        task: Some("triage".into()),
        model_requested: "triage".into(),
        adapter: Some("triage@base".into()),
        adapter_digest: None,
        stage: None,
        base: "pocket".into(),
        api_key_id: None,
        user: Some("o'hara".into()),
        metadata: Some(json!("only a text")),
        conversation: "c".into(),
        messages: Some(vec![ChatMessage::new("user", text)]),
        answer: Some(text.into()),
        tool_calls: None,
        finish_reason: Some("stop".into()),
        prompt_tokens: 3,
        completion_tokens: 4,
        time_to_first_token_ms: Some(1.5),
        duration_ms: 2.5,
        parameters: json!({"temperature": 0}),
        code: 200,
        format_valid: Some(false),
        format_reason: Some("not_json".into()),
        run_id: None,
    }
}
