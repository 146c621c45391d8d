//! Reading and changing a CPU tensor's numbers in place, without copies.

use std::cell::RefCell;
use std::ops::{Deref, Range};
use std::sync::RwLockReadGuard;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor};

/// A contiguous f32 tensor's numbers, for as long as this lives.
pub(crate) struct Numbers<'a> {
    storage: RwLockReadGuard<'a, Storage>,
    range: Range<usize>,
}

impl Deref for Numbers<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(all)) => &all[self.range.clone()],
            // `read` lets nothing else in.
            _ => &[],
        }
    }
}

/// Errors if the tensor is not a contiguous f32 tensor on the CPU.
pub(crate) fn read(tensor: &Tensor) -> Result<Numbers<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => Ok(Numbers {
            storage,
            range: start..end,
        }),
        _ => candle_core::bail!(
            "expected contiguous f32 numbers on the CPU, got {:?}",
            tensor.dtype()
        ),
    }
}

struct Edit<F>(RefCell<F>);

impl<F: FnMut(&mut [f32])> InplaceOp1 for Edit<F> {
    fn name(&self) -> &'static str {
        "edit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (storage, layout.contiguous_offsets()) {
            (CpuStorage::F32(all), Some((start, end))) => {
                (self.0.borrow_mut())(&mut all[start..end]);
                Ok(())
            }
            _ => candle_core::bail!("expected contiguous f32 numbers on the CPU"),
        }
    }
}

/// Changes the tensor's numbers in place. Every clone of the tensor sees the change; `edit` must not read the tensor
/// by another way, which would wait for itself for ever.
pub(crate) fn edit(tensor: &Tensor, edit: impl FnMut(&mut [f32])) -> Result<()> {
    tensor.inplace_op1(&Edit(RefCell::new(edit)))
}

/// `into += other`, element by element.
pub(crate) fn add(into: &Tensor, other: &Tensor) -> Result<()> {
    let other = read(other)?;
    edit(into, |into| {
        into.iter_mut().zip(other.iter()).for_each(|(a, b)| *a += b)
    })
}

/// A matrix of these numbers, taken over without a copy.
pub(crate) fn matrix(numbers: Vec<f32>, rows: usize, columns: usize) -> Result<Tensor> {
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)
}

pub(crate) fn zeros(shape: &[usize]) -> Result<Tensor> {
    Tensor::zeros(shape, DType::F32, &Device::Cpu)
}
