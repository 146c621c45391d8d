//! The simulated apps and raters of `retune demo`: a client like any other, over HTTP and nothing else.
//!
//! Apps ask, raters who know the right answer judge, the traffic drifts, and what the server makes of it is read from
//! its own routes. Everything drawn (texts, noise, drift) follows from one seed and a message's number, never from timing.

mod apps;
mod client;
mod generations;
mod play;
mod raters;
mod story;
mod summary;
mod texts;

pub use apps::Asked;
pub use client::{Alarm, Client, Error, Run};
pub use generations::Generation;
pub use play::{Play, Played};
pub use story::{Bar, Story};
pub use summary::Summary;
pub use texts::{Era, Message, Texts};
