//! What comes after the first promotion: a second drift, labels that slipped, and a canary that is worse.
//!
//! A loop that learns once proves little. The second drift has to be learned without losing the first; what was learned from wrong labels must not
//! pass its examination; and what somebody gives a share of the traffic all the same must not keep it.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::apps::{Apps, Asked, Traffic};
use crate::client::{Client, Error, Run};
use crate::play::{Play, tell_run, tell_traffic};
use crate::story::Story;
use crate::summary::{exact, valid};
use crate::texts::Era;

/// Exchanges whose raters' table has slipped: nothing else is known when the run begins.
const SLIPPED: usize = 320;
/// Time between two questions while that run trains and examines.
const MEANWHILE: Duration = Duration::from_millis(120);
/// The canary's share, and exchanges after which nobody waits for its end any more.
const SHARE: f64 = 0.3;
const PATIENCE: usize = 1500;
/// How often it is looked up where the canary stands.
const LOOK: Duration = Duration::from_millis(500);

const ABROAD: &str = "The traffic drifts again: the shop has opened abroad, and every second customer writes from there, with the country's letters in front of the order number.";

/// One of them in figures; what did not happen is null.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Generation {
    pub what: &'static str,
    pub adapter: Option<String>,
    pub alarm_kind: Option<String>,
    pub examples_train: Option<u64>,
    pub examples_examined: Option<u64>,
    pub votes: Option<u64>,
    pub wins: Option<u64>,
    pub ties: Option<u64>,
    pub p_value: Option<f64>,
    pub verdict: Option<String>,
    pub promoted: Option<bool>,
    /// Of the messages that the drift brought: in the right format, and exactly right.
    pub new_valid_before: Option<f64>,
    pub new_valid_after: Option<f64>,
    pub new_exact_before: Option<f64>,
    pub new_exact_after: Option<f64>,
    /// The same of all others, which the champion had learned before.
    pub old_valid_before: Option<f64>,
    pub old_valid_after: Option<f64>,
    pub old_exact_before: Option<f64>,
    pub old_exact_after: Option<f64>,
    /// Exchanges that the canary answered before its end, and the champion meanwhile.
    pub canary_exchanges: Option<u64>,
    pub champion_exchanges: Option<u64>,
    /// Where the adapter stands in the end, by whose decision, and why.
    pub stage: Option<String>,
    pub by: Option<String>,
    pub reason: Option<String>,
}

impl Generation {
    fn of(what: &'static str, run: &Run) -> Self {
        Self {
            what,
            adapter: run.adapter.clone(),
            examples_train: run.examples_train,
            examples_examined: run.examples_examined,
            votes: run.votes,
            wins: run.wins,
            ties: run.ties,
            p_value: run.p_value,
            verdict: run.verdict.clone(),
            promoted: run.promoted,
            ..Self::default()
        }
    }

    /// Where its adapter stands, and since which decision.
    async fn standing(&mut self, client: &Client) -> Result<(), Error> {
        let Some(adapter) = &self.adapter else {
            return Ok(());
        };
        let shown = client.adapter(adapter).await?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.stage = text(&shown["stage"]);
        let last = shown["history"].as_array().and_then(|all| all.last());
        self.by = last.and_then(|last| text(&last["by"]));
        self.reason = last.and_then(|last| text(&last["reason"]));
        Ok(())
    }
}

impl Play<'_> {
    /// A second drift, which the champion of the first has to be taught without losing that.
    pub async fn second_drift(&mut self) -> Result<Generation, Error> {
        let begun = self.apps.asked.len();
        let drifted = self.drift(Era::Abroad, ABROAD).await?;
        let run = drifted.run.unwrap_or_default();
        let mut generation = Generation::of("second drift", &run);
        generation.alarm_kind = drifted.alarm.map(|alarm| alarm.kind);
        let asked = &self.apps.asked[begun..];
        let is_old = |kind: &str| self.apps.asked[..begun].iter().any(|a| a.kind == kind);
        let part = |old: bool, after: bool| {
            let candidate = run.adapter.clone();
            asked.iter().filter(move |a| {
                is_old(&a.kind) == old && (candidate.as_deref() == Some(&a.adapter)) == after
            })
        };
        generation.new_valid_before = valid(part(false, false));
        generation.new_valid_after = valid(part(false, true));
        generation.new_exact_before = exact(part(false, false));
        generation.new_exact_after = exact(part(false, true));
        generation.old_valid_before = valid(part(true, false));
        generation.old_valid_after = valid(part(true, true));
        generation.old_exact_before = exact(part(true, false));
        generation.old_exact_after = exact(part(true, true));
        generation.standing(&self.client).await?;
        let percent = |share: Option<f64>| {
            share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", 100.0 * share))
        };
        self.story.tell(format_args!(
            "Exactly right: from abroad {} before, {} after; everything else {} before, {} after.",
            percent(generation.new_exact_before),
            percent(generation.new_exact_after),
            percent(generation.old_exact_before),
            percent(generation.old_exact_after),
        ));
        Ok(generation)
    }

    /// Another task, whose raters' table has slipped by a row until its first run begins: every answer known by then is another
    /// message's. `run` makes that run, and gives its report.
    pub async fn slipped_labels<E: From<Error>>(
        &mut self,
        client: &Client,
        run: impl Future<Output = Result<Value, E>>,
    ) -> Result<Generation, E> {
        let story = self.story;
        story.tell("Another task begins, and its raters' table has slipped by a row: each answer is corrected to what is right for another message.");
        let mut apps = Apps::new(client.clone(), self.seed.wrapping_add(1));
        let slipped = Traffic {
            slipped: true,
            at_most: Some(SLIPPED),
            ..Traffic::of(Era::Normal)
        };
        ask(story, &mut apps, slipped, || false).await?;
        story.tell("Somebody starts a run (retune retrain); the table is mended meanwhile, and examinations ask what is right now.");
        let done = Cell::new(false);
        let meanwhile = Traffic {
            every: Some(MEANWHILE),
            ..Traffic::of(Era::Normal)
        };
        let (report, asked) = tokio::join!(
            async {
                let report = run.await;
                done.set(true);
                report
            },
            ask(story, &mut apps, meanwhile, || done.get())
        );
        asked?;
        self.apps.asked.append(&mut apps.asked);
        let run: Run = serde_json::from_value(report?).unwrap_or_default();
        tell_run(story, &run);
        let mut generation = Generation::of("slipped labels", &run);
        generation.standing(client).await?;
        Ok(generation)
    }

    /// An adapter, from its folder, that somebody gives a share of the live traffic without any examination.
    pub async fn worse_canary(&mut self, folder: &Path) -> Result<Generation, Error> {
        let (client, story) = (self.client.clone(), self.story);
        let name = client.import(folder).await?;
        story.tell(format_args!(
            "Somebody who does not believe the verdict brings it over as {name}, and gives it {:.0} % of the users.",
            100.0 * SHARE
        ));
        client.canary(&name, SHARE, "it looks fine to me").await?;
        let (stage, seen) = watch::channel(String::new());
        let mut lookout = JoinSet::new();
        lookout.spawn(look_at(client.clone(), name.clone(), stage));
        let traffic = Traffic {
            customers: true,
            at_most: Some(PATIENCE),
            ..Traffic::of(Era::Abroad)
        };
        let begun = self.apps.asked.len();
        let is_over = || !matches!(seen.borrow().as_str(), "" | "canary");
        ask(story, &mut self.apps, traffic, is_over).await?;
        let by = |of: bool| {
            let asked = self.apps.asked[begun..].iter();
            asked.filter(|a| (a.adapter == name) == of).count() as u64
        };
        let (by_canary, by_champion) = (by(true), by(false));
        let mut generation = Generation {
            what: "worse canary",
            canary_exchanges: Some(by_canary),
            champion_exchanges: Some(by_champion),
            adapter: Some(name),
            ..Generation::default()
        };
        generation.standing(&client).await?;
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        story.tell(format_args!(
            "After {} of its answers it is {}, by {}: {}.",
            by_canary,
            or_none(&generation.stage),
            or_none(&generation.by),
            or_none(&generation.reason)
        ));
        Ok(generation)
    }
}

async fn look_at(client: Client, name: String, stage: watch::Sender<String>) {
    while !stage.is_closed() {
        if let Ok(shown) = client.adapter(&name).await {
            stage.send_replace(shown["stage"].as_str().unwrap_or_default().to_owned());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn ask(
    story: &Story,
    apps: &mut Apps,
    traffic: Traffic,
    is_over: impl Fn() -> bool,
) -> Result<(), Error> {
    let before = apps.asked.len();
    let mut bar = story.bar("asking");
    let so_far = |asked: &[Asked]| {
        bar.at(asked.len() as u64, traffic.at_most.map(|most| most as u64));
        is_over()
    };
    apps.ask(traffic, so_far).await?;
    drop(bar);
    tell_traffic(story, &apps.asked[before..]);
    Ok(())
}
