//! One file a subcommand: it reads its arguments, calls the crate that does the work, and prints what came of it.

pub(crate) mod adapter;
pub(crate) mod advise;
pub(crate) mod check;
pub(crate) mod dataset;
pub(crate) mod demo;
pub(crate) mod keys;
pub(crate) mod ledger;
pub(crate) mod monitor;
pub(crate) mod retrain;
pub(crate) mod review;
pub(crate) mod serve;
pub(crate) mod synth;
pub(crate) mod up;
