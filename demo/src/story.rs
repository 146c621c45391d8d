//! Tells what happens as it happens: plain lines, and a bar on a terminal for what takes long.
//!
//! Without a terminal a bar becomes a line now and then, so that a log shows that something moves.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// How often a bar without a terminal says where it is.
const QUIET: Duration = Duration::from_secs(15);

/// Where the lines go.
pub struct Story {
    bars: Option<MultiProgress>,
    to_stderr: bool,
    started: Instant,
}

impl Story {
    /// `to_stderr`: stdout belongs to something else, such as a JSON line.
    pub fn new(to_stderr: bool) -> Self {
        let bars = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self {
            bars,
            to_stderr,
            started: Instant::now(),
        }
    }

    /// One line, with the time since the start in front. A reader who went away is no reason to stop.
    pub fn tell(&self, line: impl Display) {
        let seconds = self.started.elapsed().as_secs();
        let write = || {
            let line = format!("{:>2}:{:02}  {line}\n", seconds / 60, seconds % 60);
            if self.to_stderr {
                std::io::stderr().write_all(line.as_bytes()).ok();
            } else {
                std::io::stdout().write_all(line.as_bytes()).ok();
            }
        };
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    /// Since the story began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Something that takes a while; it vanishes when dropped.
    pub fn bar(&self, what: &str) -> Bar<'_> {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::no_length());
            bar.set_message(what.to_owned());
            bar.set_style(style("      {msg} {spinner} {pos}"));
            bar
        });
        Bar {
            story: self,
            bar,
            what: what.to_owned(),
            told: Instant::now(),
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// See [`Story::bar`].
pub struct Bar<'a> {
    story: &'a Story,
    bar: Option<ProgressBar>,
    what: String,
    told: Instant,
}

impl Bar<'_> {
    /// `done` so far, of `total` where that is known.
    pub fn at(&mut self, done: u64, total: Option<u64>) {
        match &self.bar {
            Some(bar) => {
                if bar.length() != total {
                    let template = match total {
                        Some(_) => "      {msg} {bar:30} {pos} of {len}, {elapsed}",
                        None => "      {msg} {spinner} {pos}, {elapsed}",
                    };
                    bar.set_style(style(template));
                    match total {
                        Some(total) => bar.set_length(total),
                        None => bar.unset_length(),
                    }
                }
                bar.set_position(done);
            }
            None if self.told.elapsed() >= QUIET => {
                self.told = Instant::now();
                match total {
                    Some(total) => self
                        .story
                        .tell(format_args!("  … {}: {done} of {total}", self.what)),
                    None => self.story.tell(format_args!("  … {}: {done}", self.what)),
                }
            }
            None => {}
        }
    }

    /// Something else is under way now.
    pub fn rename(&mut self, what: &str) {
        if self.what != what {
            what.clone_into(&mut self.what);
            if let Some(bar) = &self.bar {
                bar.set_message(what.to_owned());
            }
        }
    }
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
