//! A program that trains: it gets the folder as its last argument, tells its steps on stdout, a line of JSON each, and leaves PEFT's two
//! files in `adapter/`. All else that it says goes to the log.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::Stdio;

use retune_trainer::Progress;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedSender;

use super::Told;
use crate::Error;

/// Lines of what it said last that go with the error.
const LAST: usize = 12;
/// The key to this server is none of its business.
const OWN_KEY: &str = "RETUNE_API_KEY";

/// Runs it to its end; told to end where this is dropped.
pub(super) async fn train(
    command: Vec<String>,
    folder: PathBuf,
    progress: UnboundedSender<Progress>,
) -> Result<PathBuf, Error> {
    let shown = command.join(" ");
    let failed = |what: String| Error::Program {
        program: shown.clone(),
        what,
    };
    let [program, arguments @ ..] = command.as_slice() else {
        return Err(failed("is no program".to_owned()));
    };
    let mut spawn = Command::new(program);
    spawn.args(arguments).arg(&folder).env_remove(OWN_KEY);
    spawn
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = spawn
        .spawn()
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    let mut child = EndedWithUs(child);
    let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
    let steps = lines(stdout, |line| match serde_json::from_str::<Told>(line) {
        // Nobody may listen any more.
        Ok(told) => drop(progress.send(told.into())),
        Err(_) => tracing::info!(target: "retune::trainer", "{line}"),
    });
    let mut last = VecDeque::with_capacity(LAST);
    let said = lines(stderr, |line| {
        tracing::info!(target: "retune::trainer", "{line}");
        if last.len() == LAST {
            last.pop_front();
        }
        last.push_back(line.to_owned());
    });
    tokio::join!(steps, said);
    let status = child
        .0
        .wait()
        .await
        .map_err(|error| failed(error.to_string()))?;
    let last = Vec::from(last).join("\n");
    if !status.success() {
        return Err(failed(format!(
            "ended with {status}; it said last:\n{last}"
        )));
    }
    let adapter = folder.join("adapter");
    if !adapter.is_dir() {
        let what = format!(
            "ended well and left no {}; it said last:\n{last}",
            adapter.display()
        );
        return Err(failed(what));
    }
    Ok(adapter)
}

/// Each line, in order; what is no UTF-8 ends it.
async fn lines(from: Option<impl AsyncRead + Unpin>, mut each: impl FnMut(&str)) {
    let Some(from) = from else { return };
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        each(&line);
    }
}

/// Ends the program when it is dropped, in the way that lets it tidy up behind it: a job elsewhere must not go on.
struct EndedWithUs(Child);

impl Drop for EndedWithUs {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(pid) = self.0.id().and_then(|id| i32::try_from(id).ok())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
            && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        {
            tracing::warn!(%error, "a training program could not be told to end");
        }
    }
}
