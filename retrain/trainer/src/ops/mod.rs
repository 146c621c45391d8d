//! The pieces of a model between the matrix products, each forward and backward by hand over plain slices.
//!
//! candle's graph would keep a copy of every intermediate, pad every batch and walk it once per primitive; its fused
//! kernels have no backward at all. Here only the matrix products are candle's. Every backward is held against finite
//! differences of its forward in its own file, and the whole model's against a composition of candle's own operations.

pub(crate) mod attention;
pub(crate) mod cross_entropy;
pub(crate) mod gated;
pub(crate) mod math;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod slice;
