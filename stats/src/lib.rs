//! Pure statistics: an e-process for failure rates, its budget of false alarms, exact intervals, an exact test.
//!
//! No I/O, no clock, no randomness: what a number is, follows from its arguments alone, so a monitor or a run that
//! starts again arrives at the same one. Each file cites where its formula comes from.

mod bernoulli_cusum;
mod budget;
mod interval;
mod sign_test;

pub use bernoulli_cusum::BernoulliCusum;
pub use budget::threshold;
pub use interval::{lower_limit, upper_limit};
pub use sign_test::sign_test;
