//! The console's pages: what a person sees of Retune, as functions from values to HTML.
//!
//! Nothing here reads or writes. The server gathers what a page shows and hands it over; a page is a struct whose fields are all that its
//! template can say, so that what was logged can only ever be text in it: askama escapes every value, and no template marks one as safe.
//!
//! Every page works without scripts: links and forms alone do all there is to do. With them htmx puts the next page into this one, keys
//! press buttons (`data-key`), curves are drawn, and answers stream.

pub mod adapters;
pub mod assets;
pub mod compare;
pub mod drift;
pub mod failure;
mod figures;
pub mod frame;
pub mod overview;
pub mod queue;
pub mod review;
pub mod runs;
pub mod session;
pub mod sign_in;
pub mod trial;

pub use askama::Template;
pub use frame::{Frame, Place};
