//! Adapters, where they stand, and the question before anything is decided of one.

use askama::Template;
use chrono::{DateTime, Utc};
use retune_ledger::{AdapterRef, Stage, Stages, Standing};
use retune_task::ModelName;

use crate::figures::{decimal, from_now, time};
use crate::frame::Frame;

/// What may be decided of an adapter that stands there, in the words of its address.
pub fn actions(stage: Stage) -> Vec<&'static str> {
    match stage {
        Stage::Candidate => vec!["promote", "canary", "shadow", "reject"],
        Stage::Canary => vec!["promote", "canary", "reject"],
        Stage::Champion => vec!["rollback"],
        Stage::Retired => vec!["promote", "canary", "reject"],
        Stage::Rejected => Vec::new(),
    }
}

/// An adapter in the list.
pub struct Row {
    pub(crate) name: String,
    pub(crate) stage: String,
    pub(crate) is_loaded: bool,
    pub(crate) run_id: Option<String>,
    pub(crate) made: String,
    pub(crate) ago: String,
}

impl Row {
    /// An adapter as it is listed.
    pub fn of(adapter: &AdapterRef, stages: &Stages, is_loaded: bool, now: DateTime<Utc>) -> Self {
        let (number, manifest) = (adapter.number, &adapter.manifest);
        let share = |what: &str, share: Option<f64>| {
            share.map(|share| format!("{what} with {:.1} %", share * 100.0))
        };
        let stage = share("canary", stages.canary_share(number))
            .or_else(|| share("shadow", stages.shadow_share(number)))
            .unwrap_or_else(|| stages.stage(number).as_str().to_owned());
        Self {
            name: ModelName::of(&adapter.task, Some(number)).to_string(),
            stage,
            is_loaded,
            run_id: manifest.run_id.clone(),
            made: time(manifest.created),
            ago: from_now(manifest.created, now),
        }
    }
}

/// One adapter.
#[derive(Template)]
#[template(path = "adapter.html")]
pub struct Page {
    /// What is around it.
    pub frame: Frame,
    /// The adapter.
    pub row: Row,
    /// What it came from.
    pub facts: Vec<(&'static str, String)>,
    /// What was decided of it, newest first.
    pub history: Vec<Decision>,
    /// What may be decided now.
    pub actions: Vec<&'static str>,
}

/// A decision.
pub struct Decision {
    pub(crate) stage: String,
    pub(crate) when: String,
    pub(crate) by: String,
    pub(crate) reason: String,
}

/// An adapter's decisions, newest first.
pub fn history(standings: &[Standing], now: DateTime<Utc>) -> Vec<Decision> {
    let said = |one: &Standing| Decision {
        stage: match one.canary_share.or(one.shadow_share) {
            Some(share) => format!("{}, {:.1} %", one.stage.as_str(), share * 100.0),
            None => one.stage.as_str().to_owned(),
        },
        when: one
            .at
            .map_or_else(|| "–".to_owned(), |at| from_now(at, now)),
        by: one.by.clone().unwrap_or_else(|| "–".to_owned()),
        reason: one.reason.clone().unwrap_or_default(),
    };
    standings.iter().rev().map(said).collect()
}

/// What an adapter came from.
pub fn facts(adapter: &AdapterRef) -> Vec<(&'static str, String)> {
    let manifest = &adapter.manifest;
    let mut facts = vec![
        ("digest", manifest.digest.clone()),
        ("base", manifest.base.clone()),
        ("base's digest", manifest.base_digest.clone()),
    ];
    facts.extend(
        manifest
            .parent
            .clone()
            .map(|parent| ("held against", parent)),
    );
    if manifest.examples_train > 0 {
        let examples = format!(
            "{} trained on, {} chose the checkpoint, {} held out",
            manifest.examples_train, manifest.examples_development, manifest.examples_held_out
        );
        facts.push(("examples", examples));
    }
    if let Some(first) = manifest.loss_first {
        let last = decimal(manifest.loss_last, 4);
        facts.push(("held-out loss", format!("{first:.4} before, {last} after")));
    }
    facts
}

/// The question before something is decided.
#[derive(Template)]
#[template(path = "decide.html")]
pub struct Decide {
    /// What is around it.
    pub frame: Frame,
    /// The adapter's name.
    pub name: String,
    /// `promote`, `canary`, `shadow`, `rollback` or `reject`.
    pub action: String,
    /// Who serves now.
    pub champion: String,
    /// The newest decision: another one in between, and nothing is done.
    pub seq: u64,
    /// Why what was sent was not taken.
    pub refused: Option<String>,
}

impl Decide {
    fn question(&self) -> String {
        let (name, champion) = (&self.name, &self.champion);
        match self.action.as_str() {
            "promote" => format!("Shall {name} answer all of the traffic, in place of {champion}?"),
            "canary" => {
                format!("Shall {name} answer a share of the traffic, beside {champion}?")
            }
            "shadow" => format!(
                "Shall {name} be asked a share of the traffic as well, its answers kept and not sent?"
            ),
            "rollback" => format!("Shall the champion before {name} come back?"),
            _ => format!("Shall {name} never answer again?"),
        }
    }

    fn wants_share(&self) -> bool {
        matches!(self.action.as_str(), "canary" | "shadow")
    }

    fn is_dangerous(&self) -> bool {
        matches!(self.action.as_str(), "rollback" | "reject")
    }
}
