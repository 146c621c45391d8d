//! `retune demo`: starts a server as anybody would, in a folder of its own, and lets simulated apps and raters play the
//! whole loop against it over HTTP.

mod child;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use retune_demo::{Client, Generation, Play, Played, Story, Summary};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::child::Server;
use crate::cli::Common;
use crate::stop::{self, Stop};
use crate::{memory, output};

/// The built-in configuration's task.
const TASK: &str = "triage";
/// The other one of the demo's own.
const OTHER: &str = "sorting";
/// Drawn seeds stay short enough to be typed again.
const SEEDS: u64 = 1_000_000;
/// How long rows may take into the tables while the server runs.
const APPENDED_WITHIN: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
#[command(
    long_about = "See the whole loop happen in a few minutes, on simulated traffic: apps ask, raters rate and correct, the traffic \
                  drifts, the alarm comes, a run trains an adapter, examines it, and promotes it where it is proven better.\n\n\
                  Everything is real but the people: a server on a free port, a store in a temporary folder, HTTP between them.",
    after_help = "Examples:\n  retune demo                        the loop, then it goes on serving until Ctrl-C\n  \
                  retune demo --once --json          the figures as the last line of stdout, the story on stderr\n  \
                  retune demo --once --seed 7        the same texts, noise, drift and split each time\n  \
                  retune demo --once --store ./demo  keep the store: tables, adapters, log, metrics\n  \
                  retune demo --once --generations   three more: a second drift, wrong labels, a canary that is worse"
)]
pub(crate) struct Args {
    /// End when the loop is done, whatever its verdict.
    #[arg(long)]
    once: bool,
    /// Repeats the texts, the raters' noise, the drift and the split [default: drawn, and told].
    #[arg(long)]
    seed: Option<u64>,
    /// Go on: a second drift is learned without losing the first, an adapter learned from labels that slipped is rejected, and as a canary
    /// it is taken back.
    #[arg(long)]
    generations: bool,
    /// A new or empty folder to keep everything in [default: a temporary one, removed at the end].
    #[arg(long, value_name = "FOLDER")]
    store: Option<PathBuf>,
}

pub(crate) async fn run(common: &Common, args: &Args) -> Result<ExitCode> {
    ensure!(
        common.config.is_none(),
        "the demo plays with the built-in configuration; leave --config out"
    );
    let stop = stop::on_signal(false)?;
    let seed = args
        .seed
        .unwrap_or_else(|| RandomState::new().build_hasher().finish() % SEEDS);
    let story = Story::new(common.json);
    story.tell(format_args!("Seed {seed}; --seed {seed} repeats it."));

    let temporary = tempfile::Builder::new()
        .prefix("retune-demo-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let folder = match &args.store {
        Some(folder) => empty(folder)?,
        None => temporary.path().to_owned(),
    };
    if args.generations {
        child::configure(&folder)?;
    }
    let mut server = child::start(&folder).context("cannot start the server")?;
    let result = tokio::select! {
        result = with_server(common, args, seed, &story, (&mut server, &folder), &stop) => result,
        () = stop.asked.cancelled() => Err(anyhow::anyhow!("stopped before the loop's end")),
    };
    let code = match result {
        Ok(code) => code,
        Err(error) => {
            // The log is only of use where the machinery failed.
            if !stop.asked.is_cancelled() {
                output::problem(format_args!(
                    "the server's last words:\n{}",
                    server.last_words()
                ));
            }
            server.stop(&stop.at_once).await.ok();
            return match stop.at_once.is_cancelled() {
                true => Ok(stop::code(&stop, ExitCode::FAILURE)),
                false => Err(error),
            };
        }
    };
    if !args.once {
        let stopped = go_on_serving(&story, (&mut server, &folder), &stop).await;
        if stop.at_once.is_cancelled() {
            return Ok(stop::code(&stop, code));
        }
        stopped?;
    }
    Ok(code)
}

async fn with_server(
    common: &Common,
    args: &Args,
    seed: u64,
    story: &Story,
    (server, folder): (&mut Server, &Path),
    stop: &Stop,
) -> Result<ExitCode> {
    let url = server.listening().await?;
    story.tell(format_args!(
        "A server listens on {url}; its store is {}.",
        folder.display()
    ));
    let (peak, peak_seen) = watch::channel(0);
    let mut lookout = JoinSet::new();
    lookout.spawn(memory::watch_peak(std::process::id(), peak));

    let client = Client::new(&url, TASK);
    let mut play = Play::begin(&client, seed, story);
    let playing = async {
        play.first().await?;
        match args.generations && play.goes_on() {
            true => generations(&mut play, &url, folder).await,
            false => Ok(Vec::new()),
        }
    };
    let generations = tokio::select! {
        generations = playing => generations?,
        ended = server.ended() => bail!("the server ended by itself: {ended}"),
    };
    let played = play.played().await?;
    child::keep_metrics(server, folder).await?;
    let logged = if args.once {
        server.stop(&stop.at_once).await?;
        child::logged(folder).await?
    } else {
        appended(folder, played.asked.len()).await?
    };
    let mut summary = Summary::new(&played, &logged, story.elapsed().as_secs_f64());
    summary.generations = generations;
    tell_end(story, &summary, *peak_seen.borrow());
    if common.json {
        output::json(&serde_json::to_value(&summary)?)?;
    }
    Ok(verdict_on_machinery(&played))
}

/// What comes after the first promotion.
async fn generations(play: &mut Play<'_>, url: &str, folder: &Path) -> Result<Vec<Generation>> {
    let second = play.second_drift().await?;
    let other = Client::new(url, OTHER);
    let slipped = play
        .slipped_labels(&other, child::retrain(folder, url, OTHER))
        .await?;
    let mut all = vec![second, slipped];
    let number = all[1]
        .adapter
        .as_deref()
        .and_then(|name| name.rsplit('@').next());
    if let Some(number) = number {
        let adapter = folder.join("store/adapters").join(OTHER).join(number);
        let canary = play.worse_canary(&adapter).await?;
        all.push(canary);
    }
    Ok(all)
}

/// A verdict against the candidate is a result; a run that broke is not.
fn verdict_on_machinery(played: &Played) -> ExitCode {
    match played
        .run
        .as_ref()
        .is_some_and(|run| run.error.is_some() || !run.ended())
    {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// The rows in the ledger of a server that goes on: they arrive within seconds.
async fn appended(folder: &Path, expected: usize) -> Result<Vec<String>> {
    let give_up = tokio::time::Instant::now() + APPENDED_WITHIN;
    loop {
        let logged = child::logged(folder).await?;
        if logged.len() >= expected || tokio::time::Instant::now() > give_up {
            return Ok(logged);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn tell_end(story: &Story, summary: &Summary, peak: u64) {
    let percent = |share: Option<f64>| {
        share.map_or_else(|| "-".into(), |share| format!("{:.1} %", 100.0 * share))
    };
    let number =
        |number: Option<f64>| number.map_or_else(|| "-".into(), |number| format!("{number:.0}"));
    story.tell(format_args!(
        "In the right format, drifted traffic: {} before, {} after; prompt tokens per exchange: {} before, {} after.",
        percent(summary.format_valid_before),
        percent(summary.format_valid_after),
        number(summary.prompt_tokens_before),
        number(summary.prompt_tokens_after),
    ));
    story.tell(format_args!(
        "{} exchanges answered, {} in the ledger; {:.0} s; at most {:.1} GB of memory.",
        summary.exchanges,
        summary.exchanges_logged,
        summary.seconds,
        peak as f64 / 1e9,
    ));
}

async fn go_on_serving(
    story: &Story,
    (server, folder): (&mut Server, &Path),
    stop: &Stop,
) -> Result<()> {
    let url = server.listening().await?;
    story.tell("It goes on serving until Ctrl-C. Ask it yourself:");
    story.tell(format_args!(
        "  curl {url}/v1/chat/completions -H 'content-type: application/json' \
         -d '{{\"model\": \"{TASK}\", \"messages\": [{{\"role\": \"user\", \"content\": \"My parcel never came, please help.\"}}]}}'"
    ));
    let metrics = server.metrics_url().await?;
    story.tell(format_args!("  metrics: {metrics}; Grafana's dashboards and Prometheus' rules are in the source's grafana/"));
    story.tell(format_args!(
        "  its tables, adapters and log: {}",
        folder.display()
    ));
    tokio::select! {
        () = stop.asked.cancelled() => {}
        ended = server.ended() => bail!("the server ended by itself: {ended}"),
    }
    story.tell("Stopping.");
    server.stop(&stop.at_once).await
}

/// Makes the folder where it is missing; one with something in it may be somebody's.
fn empty(folder: &PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    ensure!(
        entries.next().is_none(),
        "--store {}: not empty; name a new folder",
        folder.display()
    );
    Ok(folder.canonicalize()?)
}
