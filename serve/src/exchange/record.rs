//! What remains of an exchange: its figures in the metrics, its row in the ledger.

use std::time::Instant;

use chrono::Utc;
use retune_ledger::{Exchange, Purpose};
use retune_task::{Check, conversation};
use retune_wire::{Ask, Choice, tool_calls};
use serde_json::{Value, json};
use tracing::Instrument;

use super::{Asked, Running, max_tokens, shown};
use crate::trace;

impl Running {
    /// `check`: of an answer that the model gave by itself.
    pub(super) fn measure(&self, code: u16, check: Option<&Check>) {
        let Asked {
            route,
            purpose,
            arrived,
            ..
        } = &self.asked;
        if *purpose != Purpose::User {
            return;
        }
        let metrics = &self.app.metrics;
        let (task, adapter) = (route.task_name(), route.name.as_str());
        metrics
            .requests
            .with_label_values(&[task, adapter, &route.stage, &code.to_string()])
            .inc();
        let count = |kind, tokens: usize| {
            metrics
                .tokens
                .with_label_values(&[task, adapter, kind])
                .inc_by(tokens as u64)
        };
        count("prompt", self.usage.prompt);
        count("completion", self.usage.completion);
        // Without prices it stays at 0.
        let prices = &self.app.config.cost;
        let cost = |kind, tokens: usize, million: f64| {
            metrics
                .cost
                .with_label_values(&[task, adapter, kind])
                .inc_by(tokens as f64 * million / 1e6);
        };
        cost("prompt", self.usage.prompt, prices.prompt_million);
        let million = prices.completion_million;
        cost("completion", self.usage.completion, million);
        if code != 200 {
            return;
        }
        metrics
            .duration
            .with_label_values(&[task, adapter])
            .observe(arrived.elapsed().as_secs_f64());
        if let Some(first) = self.first_text {
            metrics
                .first_token
                .with_label_values(&[task, adapter])
                .observe((first - *arrived).as_secs_f64());
            if self.usage.completion > 1 {
                let each = first.elapsed().as_secs_f64() / (self.usage.completion - 1) as f64;
                metrics
                    .per_token
                    .with_label_values(&[task, adapter])
                    .observe(each);
            }
        }
        match check {
            None => {}
            Some(Check::Valid) => metrics
                .format_checks
                .with_label_values(&[task, adapter, "valid", ""])
                .inc(),
            Some(Check::Invalid { reason, .. }) => metrics
                .format_checks
                .with_label_values(&[task, adapter, "invalid", *reason])
                .inc(),
        }
    }

    /// Keeps the row, or says why it could not be kept. `check`: of an answer that the model gave by itself.
    pub(super) async fn log(
        &self,
        code: u16,
        check: Option<&Check>,
    ) -> Result<(), retune_ledger::Error> {
        let row = self.row(code, check);
        tracing::debug!(
            request_id = row.request_id,
            adapter = self.asked.route.name,
            code,
            tokens = row.completion_tokens,
            "exchange"
        );
        self.keep(row).await
    }

    /// Keeps an answer that broke its format and was asked for again: what counts for the format stream in its place.
    pub(super) async fn log_first_try(&self) {
        let row = Exchange {
            request_id: self.app.ledger.new_request_id(self.asked.request.store),
            purpose: Purpose::Probe,
            ..self.row(200, self.check().as_ref())
        };
        // Told where it happens; the exchange itself has a row of its own, and that one decides.
        drop(self.keep(row).await);
    }

    /// Tells the exchange's span how it ended.
    pub(super) fn trace(&self, code: u16, check: Option<&Check>) {
        let finish = self.choices.first().map(|choice| choice.finish);
        trace::ended(&trace::End {
            code,
            finish: finish.filter(|finish| !finish.is_empty()),
            prompt_tokens: self.usage.prompt,
            completion_tokens: self.usage.completion,
            format: shown(check),
        });
    }

    async fn keep(&self, row: Exchange) -> Result<(), retune_ledger::Error> {
        let span = tracing::debug_span!(target: trace::TARGET, "ledger");
        let request_id = row.request_id.clone();
        let kept = self.app.ledger.append_exchange(row).instrument(span).await;
        if let Err(e) = &kept {
            tracing::error!(request_id, error = %e, "an exchange could not be kept");
        }
        kept
    }

    /// The row, as the task lets it be kept.
    fn row(&self, code: u16, check: Option<&Check>) -> Exchange {
        let row = self.whole_row(code, check);
        match &self.asked.route.task {
            Some(task) => self.app.ledger.withhold(row, &task.privacy),
            None => row,
        }
    }

    fn whole_row(&self, code: u16, check: Option<&Check>) -> Exchange {
        let Asked {
            request_id,
            request,
            route,
            purpose,
            run_id,
            api_key_id,
            arrived,
            ..
        } = &self.asked;
        let milliseconds = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1000.0;
        let kept = request.store;
        let messages = request.messages();
        let first = self.choices.first();
        // A raw prompt is not the task's job, whichever of its models continues it.
        let task = route
            .task
            .as_ref()
            .filter(|_| matches!(request.ask, Ask::Chat(_)));
        let calls = first.filter(|c| kept && !c.message.calls.is_empty());
        Exchange {
            request_id: request_id.clone(),
            replica: self.app.ledger.replica().to_owned(),
            seq: 0,
            ts: Utc::now(),
            purpose: *purpose,
            task: task.map(|t| t.name.clone()),
            model_requested: request.model.clone(),
            adapter: Some(route.name.clone()),
            adapter_digest: route.digest().map(str::to_owned),
            stage: Some(route.stage.clone()),
            base: self.app.table.load().base.clone(),
            api_key_id: api_key_id.clone(),
            user: request
                .safety_identifier
                .clone()
                .or_else(|| request.user.clone()),
            metadata: request.metadata.clone(),
            conversation: conversation(&messages),
            messages: kept.then_some(messages),
            answer: kept.then(|| first.map(text).unwrap_or_default()),
            tool_calls: calls.map(|c| tool_calls(&c.message.calls)),
            finish_reason: first
                .filter(|c| !c.finish.is_empty())
                .map(|c| c.finish.to_owned()),
            prompt_tokens: self.usage.prompt as u64,
            completion_tokens: self.usage.completion as u64,
            time_to_first_token_ms: self.first_text.map(|at| milliseconds(*arrived, at)),
            duration_ms: milliseconds(*arrived, Instant::now()),
            parameters: self.parameters(kept),
            code,
            format_valid: check.map(Check::is_valid),
            format_reason: match check {
                Some(Check::Invalid { reason, .. }) => Some((*reason).to_owned()),
                _ => None,
            },
            run_id: run_id.clone(),
        }
    }

    /// The request's parameters, what was enforced, and the answers beyond the first.
    fn parameters(&self, kept: bool) -> Value {
        let Asked { request, route, .. } = &self.asked;
        let mut parameters = request.parameters(max_tokens(request, route));
        if let Some(word) = match self.enforce {
            retune_task::Enforce::Off => None,
            retune_task::Enforce::Constrain => Some("constrain"),
            retune_task::Enforce::Retry => self.retried.then_some("retry"),
        } {
            parameters.insert("enforced".to_owned(), json!(word));
        }
        if kept && self.choices.len() > 1 {
            let others: Vec<String> = self.choices.iter().skip(1).map(text).collect();
            parameters.insert("other_answers".to_owned(), json!(others));
        }
        Value::Object(parameters)
    }
}

fn text(choice: &Choice) -> String {
    choice.message.content.clone().unwrap_or_default()
}
