//! The play's acts: traffic, a drift, the alarm, a run, its examination, and what comes after the promotion. `generations` goes on from there.
//!
//! Each act ends when what it waits for has happened, or when it has waited long enough: nothing is assumed to happen,
//! and what did not happen is missing from what is handed back.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::apps::{Apps, Asked, Traffic};
use crate::client::{Alarm, Client, Error, Run};
use crate::story::Story;
use crate::texts::Era;

/// Exchanges before the drift: the reference (the first 300), and 450 more, in which no alarm should come and examples gather.
const BEFORE_DRIFT: usize = 750;
/// Drifted exchanges that may pass without an alarm before the play gives up.
const PATIENCE: usize = 1500;
/// Drifted exchanges after the promotion.
const AFTER: usize = 240;
/// Time between questions while the run trains: rows must go on coming, the training needs the processors.
const SLOWLY: Duration = Duration::from_millis(250);
/// Time for the alarm's run to begin once there is an alarm, and for it to end.
const RUN_BEGINS: Duration = Duration::from_secs(150);
const RUN_ENDS: Duration = Duration::from_secs(600);
/// Phrases that are told of an alarm.
const PHRASES: usize = 3;
/// How often alarms and runs are looked up.
const LOOK: Duration = Duration::from_millis(300);

/// Everything that the play saw.
#[derive(Debug, Clone, Default)]
pub struct Played {
    /// Every exchange, in the order of the answers.
    pub asked: Vec<Asked>,
    pub alarms: Vec<Alarm>,
    /// The run that the alarm started, at its newest state.
    pub run: Option<Run>,
}

#[derive(Debug, Clone, Default)]
struct News {
    alarms: Vec<Alarm>,
    runs: Vec<Run>,
}

/// A play under way, against a running server.
pub struct Play<'a> {
    pub(crate) client: Client,
    pub(crate) story: &'a Story,
    pub(crate) apps: Apps,
    pub(crate) seed: u64,
    news: watch::Receiver<News>,
    _lookout: JoinSet<()>,
    run: Option<Run>,
}

/// What came of a drift.
pub(crate) struct Drifted {
    pub(crate) alarm: Option<Alarm>,
    pub(crate) run: Option<Run>,
}

const RETURNS: &str = "The traffic drifts: from now on every second customer returns something, which nobody did before, and copies the order number from a slip on which it stands in groups.";

impl<'a> Play<'a> {
    pub fn begin(client: &Client, seed: u64, story: &'a Story) -> Self {
        let mut lookout = JoinSet::new();
        let (news, looked) = watch::channel(News::default());
        lookout.spawn(look_out(client.clone(), news));
        Self {
            client: client.clone(),
            story,
            apps: Apps::new(client.clone(), seed),
            seed,
            news: looked,
            _lookout: lookout,
            run: None,
        }
    }

    /// All acts up to the first promotion, and the better answers after it. Errors mean that the machinery failed; a drift that nobody
    /// noticed, or a verdict against the candidate, is no error.
    pub async fn first(&mut self) -> Result<(), Error> {
        self.before_any_drift().await?;
        self.run = self.drift(Era::Returns, RETURNS).await?.run;
        Ok(())
    }

    /// Whether the first drift ended with a promotion: without one there is nothing to go on from.
    pub fn goes_on(&self) -> bool {
        let run = self.run.as_ref();
        run.is_some_and(|run| run.promoted == Some(true))
    }

    /// Everything that was seen so far.
    pub async fn played(&self) -> Result<Played, Error> {
        Ok(Played {
            asked: self.apps.asked.clone(),
            alarms: self.client.alarms().await?,
            run: self.run.clone(),
        })
    }
}

/// Looks up alarms and runs again and again; a look that fails is made up for by the next.
async fn look_out(client: Client, news: watch::Sender<News>) {
    while !news.is_closed() {
        if let (Ok(alarms), Ok(runs)) = (client.alarms().await, client.runs().await) {
            news.send_replace(News { alarms, runs });
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Play<'_> {
    async fn before_any_drift(&mut self) -> Result<(), Error> {
        let story = self.story;
        story.tell("Apps ask, raters rate and correct.");
        let mut bar = story.bar("asking");
        let normal = Traffic {
            at_most: Some(BEFORE_DRIFT),
            ..Traffic::of(Era::Normal)
        };
        let so_far = |asked: &[Asked]| {
            bar.at(asked.len() as u64, Some(BEFORE_DRIFT as u64));
            false
        };
        self.apps.ask(normal, so_far).await?;
        drop(bar);
        tell_traffic(story, &self.apps.asked);
        let alarms = self.news.borrow().alarms.len();
        if alarms > 0 {
            story.tell(format_args!("A false alarm: {alarms} before any drift."));
        }
        Ok(())
    }

    /// From a drift to what comes after the promotion, or as far as it goes.
    pub(crate) async fn drift(&mut self, era: Era, told: &str) -> Result<Drifted, Error> {
        let (apps, story, news) = (&mut self.apps, self.story, &self.news);
        let known: Vec<String> = news
            .borrow()
            .alarms
            .iter()
            .map(|a| a.alarm.clone())
            .collect();
        story.tell(told);
        let drifted = Traffic {
            at_most: Some(PATIENCE),
            ..Traffic::of(era)
        };
        let new_alarm = || {
            news.borrow()
                .alarms
                .iter()
                .find(|a| a.starts_a_run() && !known.contains(&a.alarm))
                .cloned()
        };
        let before = apps.asked.len();
        let mut bar = story.bar("asking");
        apps.ask(drifted, |asked| {
            bar.at(asked.len() as u64, None);
            new_alarm().is_some()
        })
        .await?;
        drop(bar);
        tell_traffic(story, &apps.asked[before..]);
        tell_example(story, &apps.asked[..before], &apps.asked[before..]);
        let Some(alarm) = new_alarm() else {
            story.tell(format_args!(
                "No alarm in {PATIENCE} drifted exchanges; this drift ends here."
            ));
            return Ok(Drifted {
                alarm: None,
                run: None,
            });
        };
        tell_alarm(story, &alarm);
        let run = retrain(apps, story, news, &alarm, era).await?;
        if let Some(run) = run.as_ref().filter(|run| run.promoted == Some(true)) {
            after_promotion(apps, story, run, era).await?;
        }
        Ok(Drifted {
            alarm: Some(alarm),
            run,
        })
    }
}

fn tell_alarm(story: &Story, alarm: &Alarm) {
    story.tell(format_args!(
        "Alarm: the {} of {} has changed (log e-value {:.1}, threshold {:.1}).",
        alarm.kind, alarm.adapter, alarm.log_e, alarm.threshold_log
    ));
    let moved = alarm.phrases().into_iter().take(PHRASES);
    let moved = moved.map(|(phrase, usual, trouble)| {
        format!(
            "“{phrase}” ({:.0} % usually, {:.0} % there)",
            usual * 100.0,
            trouble * 100.0
        )
    });
    let moved: Vec<String> = moved.collect();
    if !moved.is_empty() {
        story.tell(format_args!(
            "What the requests that fail say more often: {}.",
            moved.join(", ")
        ));
    }
}

/// Until the alarm's run has ended, or has kept everybody waiting for too long.
async fn retrain(
    apps: &mut Apps,
    story: &Story,
    news: &watch::Receiver<News>,
    alarm: &Alarm,
    era: Era,
) -> Result<Option<Run>, Error> {
    let started_by = format!("trigger:{}", alarm.alarm);
    let current = || {
        news.borrow()
            .runs
            .iter()
            .find(|run| run.started_by == started_by)
            .cloned()
    };
    story.tell("The run waits for enough rated and corrected exchanges since the alarm.");
    let before = apps.asked.len();
    let mut bar = story.bar("asking");
    let begins = Instant::now() + RUN_BEGINS;
    apps.ask(Traffic::of(era), |asked| {
        bar.at(asked.len() as u64, None);
        Instant::now() > begins || current().is_some_and(|run| run.state != "waiting")
    })
    .await?;
    drop(bar);
    tell_traffic(story, &apps.asked[before..]);
    if current().is_none() {
        story.tell(format_args!(
            "No run began within {} s; this drift ends here.",
            RUN_BEGINS.as_secs()
        ));
        return Ok(None);
    }

    story.tell("The run has begun by itself; the apps go on asking, more slowly.");
    let ends = Instant::now() + RUN_ENDS;
    let mut bar = story.bar("the run");
    let mut state = String::new();
    let slowly = Traffic {
        every: Some(SLOWLY),
        ..Traffic::of(era)
    };
    let before = apps.asked.len();
    apps.ask(slowly, |_| {
        let Some(run) = current() else { return true };
        if run.state != state {
            tell_state(story, &run);
            bar.rename(&run.state);
            state.clone_from(&run.state);
        }
        if let Some((done, total)) = run.progress {
            bar.at(done, Some(total));
        }
        run.ended() || Instant::now() > ends
    })
    .await?;
    drop(bar);
    let run = current();
    if let Some(run) = &run {
        tell_traffic(story, &apps.asked[before..]);
        tell_run(story, run);
    }
    Ok(run)
}

async fn after_promotion(apps: &mut Apps, story: &Story, run: &Run, era: Era) -> Result<(), Error> {
    story.tell(format_args!(
        "{} answers now; the server was never restarted.",
        run.adapter.as_deref().unwrap_or("?")
    ));
    let before = apps.asked.len();
    let mut bar = story.bar("asking");
    let drifted = Traffic {
        at_most: Some(AFTER),
        ..Traffic::of(era)
    };
    apps.ask(drifted, |asked| {
        bar.at(asked.len() as u64, Some(AFTER as u64));
        false
    })
    .await?;
    drop(bar);
    tell_traffic(story, &apps.asked[before..]);
    tell_example(story, &apps.asked[..before], &apps.asked[before..]);
    Ok(())
}

fn tell_state(story: &Story, run: &Run) {
    let count = |n: Option<u64>| n.unwrap_or_default();
    match run.state.as_str() {
        "dataset" => story.tell("A dataset is made of what the raters said."),
        "training" => story.tell(format_args!(
            "Training on {} examples; {} are held out, {} choose the checkpoint.",
            count(run.examples_train),
            count(run.examples_held_out),
            count(run.examples_development)
        )),
        "examining" => story.tell(format_args!(
            "{} is loaded beside the baseline and examined on prompts that it never trained on.",
            run.adapter.as_deref().unwrap_or("The candidate")
        )),
        _ => {}
    }
}

pub(crate) fn tell_run(story: &Story, run: &Run) {
    if let Some(error) = &run.error {
        return story.tell(format_args!("The run failed: {error}"));
    }
    if let (Some(first), Some(last)) = (run.loss_first, run.loss_last) {
        story.tell(format_args!(
            "Held-out loss {first:.3} before, {last:.3} after."
        ));
    }
    if let (Some(wins), Some(votes), Some(ties), Some(p)) =
        (run.wins, run.votes, run.ties, run.p_value)
    {
        story.tell(format_args!(
            "Blind pairs: {} for the candidate, {} for the baseline, {ties} ties; p = {p:.2e}.",
            wins,
            votes.saturating_sub(wins)
        ));
    }
    if let Some(verdict) = &run.verdict {
        let then = match run.promoted {
            Some(true) => "it is promoted",
            _ => "it is not promoted",
        };
        story.tell(format_args!("Verdict: {verdict}; {then}."));
    }
}

pub(crate) fn tell_traffic(story: &Story, asked: &[Asked]) {
    if asked.is_empty() {
        return;
    }
    let percent = |count: usize| 100.0 * count as f64 / asked.len() as f64;
    let count = |what: fn(&Asked) -> bool| asked.iter().filter(|a| what(a)).count();
    let mut kinds: Vec<&str> = asked.iter().map(|a| a.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let valid_of = |kind: &str| {
        let of: Vec<_> = asked.iter().filter(|a| a.kind == kind).collect();
        let valid = of.iter().filter(|a| a.valid == Some(true)).count();
        format!("{kind} {:.0} %", 100.0 * valid as f64 / of.len() as f64)
    };
    let by_kind = kinds
        .into_iter()
        .map(valid_of)
        .collect::<Vec<_>>()
        .join(", ");
    story.tell(format_args!(
        "{} exchanges: {:.0} % in the right format ({by_kind}), {:.0} % exactly right; {} rated, {} corrected.",
        asked.len(),
        percent(count(|a| a.valid == Some(true))),
        percent(count(|a| a.exact)),
        count(|a| a.rated),
        count(|a| a.corrected),
    ));
}

/// Shows an exchange of a kind that is new in `now`, as people would like to see one.
fn tell_example(story: &Story, before: &[Asked], now: &[Asked]) {
    let Some(era) = now.first().map(|asked| asked.era) else {
        return;
    };
    let known = |kind: &str| before.iter().any(|a| a.era < era && a.kind == kind);
    if let Some(asked) = now.iter().find(|a| !known(&a.kind)) {
        story.tell(format_args!(
            "  asked:    {}",
            asked.text.replace('\n', " ")
        ));
        story.tell(format_args!(
            "  answered: {} ({})",
            asked.answer.replace('\n', " "),
            asked.adapter
        ));
    }
}
