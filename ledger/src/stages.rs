//! Where a task's adapters stand, and every step from one standing to the next.
//!
//! Functions of values, without I/O: the server, the command line and the retraining ask the same ones, so that nobody makes a
//! champion by another rule. What comes out is written with [`crate::Ledger::set_stages`], which lets one of several writers win.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use retune_task::ModelName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::adapters::AdapterRef;
use crate::alarms::checked_reason;
use crate::error::Error;

/// Where an adapter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Made, not judged.
    Candidate,
    /// Gets a share of the traffic.
    Canary,
    /// Gets the traffic.
    Champion,
    /// Was the champion.
    Retired,
    /// Judged, and worse.
    Rejected,
}

impl Stage {
    /// All, in one order.
    pub const ALL: [Stage; 5] = [
        Stage::Candidate,
        Stage::Canary,
        Stage::Champion,
        Stage::Retired,
        Stage::Rejected,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Candidate => "candidate",
            Stage::Canary => "canary",
            Stage::Champion => "champion",
            Stage::Retired => "retired",
            Stage::Rejected => "rejected",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The stages of a task's adapters, as of decision `seq`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Stages {
    /// Of the decision; 0 before the first.
    pub seq: u64,
    /// When it was made; unknown of files of earlier versions.
    #[serde(default)]
    pub at: Option<DateTime<Utc>>,
    /// Who made it: a key, a run, a canary's test, the command line; unknown where there are no keys.
    #[serde(default)]
    pub by: Option<String>,
    /// Why, as whoever made it said.
    #[serde(default)]
    pub reason: Option<String>,
    /// None: the baseline.
    pub champion: Option<u32>,
    /// Its number and its share of the traffic.
    pub canary: Option<(u32, f64)>,
    /// Its number and the share of the traffic that it is asked as well; nobody gets its answers.
    #[serde(default)]
    pub shadow: Option<(u32, f64)>,
    /// Whether the champion became it by going back, and not by a promotion.
    #[serde(default)]
    pub rolled_back: bool,
    /// Adapters not in it are candidates.
    pub stage_of: BTreeMap<u32, Stage>,
}

/// What can be decided of an adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Action {
    /// It becomes the champion.
    Promote,
    /// It gets a share of the traffic; a share of 0 ends that.
    Canary(f64),
    /// It is asked a share of the traffic as well, and its answers are kept and not sent; a share of 0 ends that.
    Shadow(f64),
    /// It is the champion, and the one before it takes its place.
    RollBack,
    /// It never takes traffic again.
    Reject,
}

/// Why something cannot be decided, and what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// An adapter's standing from one decision on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Standing {
    /// The decision.
    pub seq: u64,
    /// When it was made.
    pub at: Option<DateTime<Utc>>,
    /// Who made it.
    pub by: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// Where the adapter stands since.
    pub stage: Stage,
    /// Its share of the traffic, while it is the canary.
    pub canary_share: Option<f64>,
    /// The share that it is asked as a shadow.
    pub shadow_share: Option<f64>,
}

impl Stages {
    /// An adapter's stage; those that were never moved are candidates.
    pub fn stage(&self, number: u32) -> Stage {
        self.stage_of
            .get(&number)
            .copied()
            .unwrap_or(Stage::Candidate)
    }

    /// The champion's name.
    pub fn champion_name(&self, task: &str) -> String {
        ModelName::of(task, self.champion).to_string()
    }

    /// The canary's share of the traffic, if this one is it.
    pub fn canary_share(&self, number: u32) -> Option<f64> {
        share_of(self.canary, number)
    }

    /// The share that this one is asked as a shadow, if it is.
    pub fn shadow_share(&self, number: u32) -> Option<f64> {
        share_of(self.shadow, number)
    }

    /// Adapters that traffic may reach: the champion and the canary.
    pub fn in_traffic(&self) -> impl Iterator<Item = u32> {
        self.champion.into_iter().chain(self.canary.map(|(n, _)| n))
    }

    /// Adapters that are asked without being named: those in traffic, and the shadow.
    pub fn asked(&self) -> impl Iterator<Item = u32> {
        self.in_traffic().chain(self.shadow.map(|(n, _)| n))
    }

    /// Adapters that these stages ask and `before` did not, or not as the champion: they must be fit for it first.
    pub fn newly_asked(&self, before: &Stages) -> Vec<u32> {
        let had: Vec<u32> = before.asked().collect();
        let crowned = self.champion.filter(|_| self.champion != before.champion);
        let mut new: Vec<u32> = self
            .asked()
            .filter(|n| crowned == Some(*n) || !had.contains(n))
            .collect();
        new.dedup();
        new
    }

    /// What is told of an adapter wherever adapters are listed.
    pub fn item(&self, adapter: &AdapterRef) -> Value {
        let manifest = &adapter.manifest;
        json!({
            "name": ModelName::of(&adapter.task, Some(adapter.number)).to_string(),
            "task": adapter.task,
            "number": adapter.number,
            "stage": self.stage(adapter.number),
            "canary_share": self.canary_share(adapter.number),
            "shadow_share": self.shadow_share(adapter.number),
            "champion": self.champion_name(&adapter.task),
            "digest": manifest.digest,
            "source": manifest.source,
            "created": manifest.created,
        })
    }

    /// The same of the baseline, which is no adapter.
    pub fn baseline_item(&self, task: &str) -> Value {
        let stage = if self.champion.is_none() {
            Stage::Champion.as_str()
        } else {
            "baseline"
        };
        json!({
            "name": ModelName::of(task, None).to_string(),
            "task": task,
            "number": null,
            "stage": stage,
            "canary_share": null,
            "shadow_share": null,
            "champion": self.champion_name(task),
            "digest": null,
            "source": null,
            "created": null,
        })
    }

    /// The same, decided by whom and why.
    ///
    /// # Errors
    /// A reason of no or too many characters.
    pub fn decided(self, by: Option<String>, reason: Option<&str>) -> Result<Stages, Error> {
        Ok(Stages {
            by,
            reason: reason.map(checked_reason).transpose()?,
            ..self
        })
    }

    /// Refuses unless `name` is the champion's.
    pub fn expect_champion(&self, task: &str, name: &str) -> Result<(), Refused> {
        let champion = self.champion_name(task);
        if name == champion {
            return Ok(());
        }
        Err(Refused(format!(
            "The champion of {task} is {champion}, not {name}. Look at what it is now, and decide anew."
        )))
    }

    /// The stages after `action` on `who` (None: the baseline). `history` is all that was decided before, oldest first, this
    /// included; only a rollback looks at it. Where nothing changes, the same stages come back.
    pub fn after(
        &self,
        task: &str,
        who: Option<u32>,
        action: Action,
        history: &[Stages],
    ) -> Result<Stages, Refused> {
        let name = ModelName::of(task, who);
        match (action, who) {
            (Action::Promote, _) => self.promoted(task, who),
            (Action::RollBack, _) => self.rolled_back(task, who, history),
            (_, None) => Err(Refused(format!(
                "{name} is the base with the task's full prompt, and no adapter: it can only be promoted, or rolled back from."
            ))),
            (Action::Canary(share), Some(number)) => self.with_canary(task, number, share),
            (Action::Shadow(share), Some(number)) => self.with_shadow(task, number, share),
            (Action::Reject, Some(number)) => self.rejected(task, number),
        }
    }

    fn promoted(&self, task: &str, next: Option<u32>) -> Result<Stages, Refused> {
        if let Some(number) = next {
            self.not_rejected(task, number)?;
        }
        if self.champion == next {
            return Ok(self.clone());
        }
        Ok(Stages {
            rolled_back: false,
            ..self.crowned(next)
        })
    }

    fn rolled_back(
        &self,
        task: &str,
        who: Option<u32>,
        history: &[Stages],
    ) -> Result<Stages, Refused> {
        if who != self.champion {
            return Err(Refused(format!(
                "{} is not the champion of {task}, {} is: that one can be rolled back.",
                ModelName::of(task, who),
                self.champion_name(task)
            )));
        }
        let usable = |before: &Option<u32>| {
            *before != self.champion && before.is_none_or(|n| self.stage(n) != Stage::Rejected)
        };
        match former(history).into_iter().rev().find(usable) {
            Some(before) => Ok(Stages {
                rolled_back: true,
                ..self.crowned(before)
            }),
            None => Err(Refused(format!(
                "There is nothing to go back to: no other champion came before {}. Promote one by its name.",
                self.champion_name(task)
            ))),
        }
    }

    fn with_canary(&self, task: &str, number: u32, share: f64) -> Result<Stages, Refused> {
        let name = ModelName::of(task, Some(number));
        let share = checked(share)?;
        self.not_rejected(task, number)?;
        if self.champion == Some(number) {
            return Err(Refused(format!(
                "{name} is the champion and gets all traffic already; promote another one first."
            )));
        }
        if let Some((other, _)) = self.canary.filter(|(n, _)| *n != number) {
            return Err(Refused(format!(
                "{} is the canary, and there is one at a time; end it first, with a share of 0.",
                ModelName::of(task, Some(other))
            )));
        }
        let mut after = self.clone();
        if share == 0.0 {
            if after.canary.take().is_some() {
                after.stage_of.insert(number, Stage::Candidate);
            }
            return Ok(after);
        }
        after.canary = Some((number, share));
        after.stage_of.insert(number, Stage::Canary);
        after.end_shadow(number);
        Ok(after)
    }

    fn with_shadow(&self, task: &str, number: u32, share: f64) -> Result<Stages, Refused> {
        let name = ModelName::of(task, Some(number));
        let share = checked(share)?;
        self.not_rejected(task, number)?;
        if self.in_traffic().any(|n| n == number) {
            return Err(Refused(format!(
                "{name} answers traffic already, as the {}: a shadow is one that does not.",
                self.stage(number)
            )));
        }
        if let Some((other, _)) = self.shadow.filter(|(n, _)| *n != number) {
            return Err(Refused(format!(
                "{} is the shadow, and there is one at a time; end it first, with a share of 0.",
                ModelName::of(task, Some(other))
            )));
        }
        Ok(Stages {
            shadow: (share > 0.0).then_some((number, share)),
            ..self.clone()
        })
    }

    fn rejected(&self, task: &str, number: u32) -> Result<Stages, Refused> {
        if self.champion == Some(number) {
            return Err(Refused(format!(
                "{} is the champion; roll it back, or promote another one, first.",
                self.champion_name(task)
            )));
        }
        let mut after = self.clone();
        after.canary = after.canary.filter(|(n, _)| *n != number);
        after.end_shadow(number);
        after.stage_of.insert(number, Stage::Rejected);
        Ok(after)
    }

    fn not_rejected(&self, task: &str, number: u32) -> Result<(), Refused> {
        if self.stage(number) != Stage::Rejected {
            return Ok(());
        }
        Err(Refused(format!(
            "{} was rejected, and what was rejected never takes traffic; choose another one.",
            ModelName::of(task, Some(number))
        )))
    }

    /// `next` is the champion, and the old one retired.
    fn crowned(&self, next: Option<u32>) -> Stages {
        let mut after = self.clone();
        if let Some(old) = after.champion {
            after.stage_of.insert(old, Stage::Retired);
        }
        if let Some(new) = next {
            after.stage_of.insert(new, Stage::Champion);
            after.canary = after.canary.filter(|(n, _)| *n != new);
            after.end_shadow(new);
        }
        after.champion = next;
        after
    }

    fn end_shadow(&mut self, number: u32) {
        self.shadow = self.shadow.filter(|(n, _)| *n != number);
    }
}

fn share_of(held: Option<(u32, f64)>, number: u32) -> Option<f64> {
    held.filter(|(n, _)| *n == number).map(|(_, share)| share)
}

fn checked(share: f64) -> Result<f64, Refused> {
    if (0.0..=1.0).contains(&share) {
        return Ok(share);
    }
    Err(Refused(format!(
        "A share of {share} is none; expected a number from 0 to 1."
    )))
}

/// The champions to go back to, the nearest last. A promotion lays the old champion on the pile, a rollback takes from it what
/// it went back to and all above, so that going back twice goes two back, and never forth again.
fn former(history: &[Stages]) -> Vec<Option<u32>> {
    let mut pile = Vec::new();
    let mut champion = None;
    for stages in history {
        if stages.champion == champion {
            continue;
        }
        if stages.rolled_back {
            while pile.pop().is_some_and(|top| top != stages.champion) {}
        } else {
            pile.push(champion);
        }
        champion = stages.champion;
    }
    pile
}

/// What was decided of one adapter, oldest first: a standing for each time that it changed.
pub fn standings(history: &[Stages], number: u32) -> Vec<Standing> {
    let mut standings: Vec<Standing> = Vec::new();
    for stages in history {
        let now = Standing {
            seq: stages.seq,
            at: stages.at,
            by: stages.by.clone(),
            reason: stages.reason.clone(),
            stage: stages.stage(number),
            canary_share: stages.canary_share(number),
            shadow_share: stages.shadow_share(number),
        };
        let same = match standings.last() {
            Some(last) => {
                (last.stage, last.canary_share, last.shadow_share)
                    == (now.stage, now.canary_share, now.shadow_share)
            }
            None => {
                now.stage == Stage::Candidate
                    && now.canary_share.is_none()
                    && now.shadow_share.is_none()
            }
        };
        if !same {
            standings.push(now);
        }
    }
    standings
}

#[cfg(test)]
#[path = "stages_tests.rs"]
mod tests;
