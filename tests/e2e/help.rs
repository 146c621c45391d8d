//! `--help` teaches: what a command says of itself there is more than its line in the list of commands.

use crate::harness::{folder, run, text};

#[test]
fn every_command_says_more_of_itself_than_a_line() {
    let folder = folder();
    for command in [
        "up",
        "serve",
        "monitor",
        "retrain",
        "adapter",
        "dataset",
        "dataset synth",
        "dataset review",
        "keys",
        "advise",
        "ledger",
        "demo",
        "check",
    ] {
        let said = |flag: &str| {
            let words: Vec<&str> = command.split(' ').chain([flag]).collect();
            let help = text(&run(folder.path(), &words).stdout);
            let before = help.split("\n\nUsage:").next().map(str::len);
            before.unwrap_or_default()
        };
        let (short, long) = (said("-h"), said("--help"));
        assert!(short > 0 && long > short + 20, "{command}: {short}, {long}");
    }
}
