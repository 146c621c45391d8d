//! A Llama as a plain, slow composition of candle's own operations and its automatic differentiation: what the
//! fast passes must agree with. For tests alone.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor, Var};
use serde_json::json;

use crate::batch::{Example, Pack};
use crate::forward::{Way, loss_and_gradients, losses};
use crate::linear::{Gradients, Linear};
use crate::lora::LoraAdapter;
use crate::model::Model;
use crate::ops::slice::{edit, matrix, read};
use crate::test_support::{random, tiny};
use crate::workers::Workers;

const THETA: f64 = 5_000.0;

/// Every weight as a variable, in slot order.
struct Variables(HashMap<usize, Var>);

impl Variables {
    fn of(&mut self, parameter: &crate::linear::Parameter) -> Tensor {
        match parameter.slot {
            None => parameter.tensor.clone(),
            Some(slot) => {
                let make = || Var::from_tensor(&parameter.tensor.copy().unwrap()).unwrap();
                self.0.entry(slot).or_insert_with(make).as_tensor().clone()
            }
        }
    }

    fn linear(&mut self, linear: &Linear, x: &Tensor) -> Tensor {
        let y = x.matmul(&self.of(&linear.weight).t().unwrap()).unwrap();
        let Some(delta) = &linear.delta else { return y };
        let a = self.of(&delta.a).t().unwrap();
        let b = self.of(&delta.b).t().unwrap();
        (y + (x.matmul(&a).unwrap().matmul(&b).unwrap() * delta.scale).unwrap()).unwrap()
    }
}

fn norm(x: &Tensor, w: &Tensor, eps: f64) -> Tensor {
    let mean = x.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
    let scaled = x
        .broadcast_div(&(mean + eps).unwrap().sqrt().unwrap())
        .unwrap();
    scaled.broadcast_mul(w).unwrap()
}

/// `[t, heads·dim]` to `[heads, t, dim]`, turned if `theta` is given.
fn heads(x: &Tensor, heads: usize, dim: usize, theta: Option<f64>) -> Tensor {
    let t = x.dim(0).unwrap();
    let x = x
        .reshape((t, heads, dim))
        .unwrap()
        .transpose(0, 1)
        .unwrap()
        .contiguous()
        .unwrap();
    let Some(theta) = theta else { return x };
    let half = dim / 2;
    let angle =
        |i: usize| ((i / half) as f64 / theta.powf(2.0 * (i % half) as f64 / dim as f64)) as f32;
    let angles =
        Tensor::from_vec((0..t * half).map(angle).collect(), (t, half), &Device::Cpu).unwrap();
    let angles = Tensor::cat(&[&angles, &angles], 1).unwrap();
    let (a, b) = (
        x.narrow(2, 0, half).unwrap(),
        x.narrow(2, half, half).unwrap(),
    );
    let turned = Tensor::cat(&[&b.neg().unwrap(), &a], 2).unwrap();
    let cos = x.broadcast_mul(&angles.cos().unwrap()).unwrap();
    (cos + turned.broadcast_mul(&angles.sin().unwrap()).unwrap()).unwrap()
}

fn logits(model: &Model, vars: &mut Variables, tokens: &[u32]) -> Tensor {
    let c = &model.config;
    let (t, d, nq, nk) = (
        tokens.len(),
        c.head_dim,
        c.num_attention_heads,
        c.num_key_value_heads,
    );
    let table = vars.of(&model.embedding);
    let mut x = table
        .index_select(&Tensor::new(tokens, &Device::Cpu).unwrap(), 0)
        .unwrap();
    let mask: Vec<f32> = (0..t * t)
        .map(|i| {
            if i % t > i / t {
                f32::NEG_INFINITY
            } else {
                0.0
            }
        })
        .collect();
    let mask = matrix(mask, t, t).unwrap();
    for layer in &model.layers {
        let h = norm(&x, &vars.of(&layer.input_norm), c.rms_norm_eps);
        let mut project = |i: usize| vars.linear(&layer.attention_in[i], &h);
        let (q, k, v) = (project(0), project(1), project(2));
        let q = heads(&q, nq, d, Some(THETA));
        let shared: Vec<u32> = (0..nq).map(|head| (head / (nq / nk)) as u32).collect();
        let shared = Tensor::new(shared, &Device::Cpu).unwrap();
        let k = heads(&k, nk, d, Some(THETA))
            .index_select(&shared, 0)
            .unwrap();
        let v = heads(&v, nk, d, None).index_select(&shared, 0).unwrap();
        let scores = (q.matmul(&k.t().unwrap()).unwrap() / (d as f64).sqrt()).unwrap();
        let scores = scores.broadcast_add(&mask).unwrap();
        let e = scores
            .broadcast_sub(&scores.max_keepdim(D::Minus1).unwrap().detach())
            .unwrap()
            .exp()
            .unwrap();
        let p = e.broadcast_div(&e.sum_keepdim(D::Minus1).unwrap()).unwrap();
        let mixed = p
            .matmul(&v)
            .unwrap()
            .transpose(0, 1)
            .unwrap()
            .contiguous()
            .unwrap()
            .reshape((t, nq * d))
            .unwrap();
        x = (x + vars.linear(&layer.attention_out, &mixed)).unwrap();
        let h = norm(&x, &vars.of(&layer.middle_norm), c.rms_norm_eps);
        let gate = vars.linear(&layer.gate_up[0], &h);
        let gated = (gate.silu().unwrap() * vars.linear(&layer.gate_up[1], &h)).unwrap();
        x = (x + vars.linear(&layer.down, &gated)).unwrap();
    }
    let x = norm(&x, &vars.of(&model.norm), c.rms_norm_eps);
    let head = model.head.as_ref().map_or(table, |head| vars.of(head));
    x.matmul(&head.t().unwrap()).unwrap()
}

/// Σ weight·nll / Σ weight.
fn reference_loss(model: &Model, vars: &mut Variables, examples: &[Example]) -> Tensor {
    let mut total = Tensor::new(0f32, &Device::Cpu).unwrap();
    let mut weight = 0.0;
    for example in examples {
        let t = example.tokens.len() - 1;
        let logits = logits(model, vars, &example.tokens[..t]);
        let top = logits.max_keepdim(1).unwrap().detach();
        let shifted = logits.broadcast_sub(&top).unwrap();
        let mass = shifted
            .exp()
            .unwrap()
            .sum_keepdim(1)
            .unwrap()
            .log()
            .unwrap();
        let logp = shifted.broadcast_sub(&mass).unwrap();
        let targets = Tensor::new(&example.tokens[1..], &Device::Cpu)
            .unwrap()
            .unsqueeze(1)
            .unwrap();
        let weights = Tensor::new(&example.weights[1..], &Device::Cpu)
            .unwrap()
            .unsqueeze(1)
            .unwrap();
        let nll = (logp.gather(&targets, 1).unwrap().neg().unwrap() * weights)
            .unwrap()
            .sum_all()
            .unwrap();
        total = (total + nll).unwrap();
        weight += example.weight();
    }
    (total / weight).unwrap()
}

fn examples() -> Vec<Example> {
    let lengths = [7usize, 12, 3, 20, 9];
    let make = |(n, &length): (usize, &usize)| {
        let tokens = (0..length)
            .map(|i| ((i * 7 + n * 13 + i * i) % 50) as u32)
            .collect();
        let weights = (0..length)
            .map(|i| [1.0, 0.2, 0.0][(i + n) % 3] * f32::from(i > 0))
            .collect();
        Example { tokens, weights }
    };
    lengths.iter().enumerate().map(make).collect()
}

/// Weights large enough that every path matters, norms that are not 1.
fn model(tied: bool) -> Model {
    let config = tiny(json!({ "tie_word_embeddings": tied, "rope_theta": THETA }));
    let model = Model::random(&config, 3).unwrap();
    for (i, parameter) in model.parameters().enumerate() {
        let noise = random(i as u64, parameter.tensor.elem_count());
        edit(&parameter.tensor, |x| {
            x.iter_mut().zip(&noise).for_each(|(x, n)| *x += 0.3 * n)
        })
        .unwrap();
    }
    model
}

/// Loss within 1e-5 and every gradient within 1e-4 (relative, L2) of the reference.
fn compare(model: &Model, slots: usize) {
    let examples = examples();
    let mut vars = Variables(HashMap::new());
    let expected = reference_loss(model, &mut vars, &examples);
    let store = expected.backward().unwrap();
    let expected = f64::from(expected.to_scalar::<f32>().unwrap());
    for threads in [1, 2, 3] {
        let workers = Workers::new(threads, threads == 2).unwrap();
        let batch: Vec<&Example> = examples.iter().collect();
        let (got, gradients) = workers.gradients(model, slots, &batch, None).unwrap();
        assert!(
            (got - expected).abs() < 1e-5,
            "{threads} threads: {got} is not {expected}"
        );
        assert!((workers.loss(model, &examples).unwrap() - expected).abs() < 1e-5);
        for slot in 0..slots {
            let expected = store
                .get(&vars.0[&slot])
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            let got = read(gradients.get(slot).unwrap()).unwrap();
            let square = |x: f32| f64::from(x) * f64::from(x);
            let apart: f64 = got.iter().zip(&expected).map(|(a, b)| square(a - b)).sum();
            let length: f64 = expected.iter().map(|&a| square(a)).sum();
            assert!(length > 0.0, "slot {slot} has no gradient at all");
            assert!(
                (apart / length).sqrt() < 1e-4,
                "slot {slot}: apart by {}",
                (apart / length).sqrt()
            );
        }
    }
}

#[test]
fn full_training_agrees_with_plain_candle() {
    for tied in [true, false] {
        let mut model = model(tied);
        let slots = model.train_everything().len();
        compare(&model, slots);
    }
}

/// B = 0 would hide half of all errors.
fn adapter(model: &Model) -> LoraAdapter {
    let adapter = LoraAdapter::new(&model.config, model.config.maps(), 3, 6.0, 0.0, 5).unwrap();
    for (i, tensor) in adapter.tensors().iter().enumerate() {
        let noise = random(100 + i as u64, tensor.elem_count());
        edit(tensor, |x| {
            x.iter_mut().zip(&noise).for_each(|(x, n)| *x += 0.2 * n)
        })
        .unwrap();
    }
    adapter
}

#[test]
fn lora_training_agrees_with_plain_candle() {
    let mut model = model(true);
    let adapter = adapter(&model);
    adapter.attach(&mut model, true).unwrap();
    compare(&model, adapter.tensors().len());
}

#[test]
fn a_merged_adapter_answers_as_an_attached_one() {
    let base = model(true);
    let mut attached = base.clone();
    adapter(&base).attach(&mut attached, false).unwrap();
    let merged = attached.merged().unwrap();
    let all = examples();
    let pack = whole(&all);
    let loss = |model: &Model| losses(model, &pack).unwrap().iter().sum::<f64>();
    let [plain, a, b] = [&base, &attached, &merged].map(loss);
    assert!((a - b).abs() < 1e-5 * a.abs(), "{a} is not {b}");
    assert!(
        (a - plain).abs() > 1e-2 * a.abs(),
        "the adapter changes nothing"
    );
    let prompts = vec![vec![1, 2, 3], vec![40, 41]];
    assert_eq!(
        attached.generate(&prompts, 10, &[]).unwrap(),
        merged.generate(&prompts, 10, &[]).unwrap()
    );
    let pairs = &adapter(&base).layers[1];
    for (merged, base) in merged.layers[1].linear().zip(base.layers[1].linear()) {
        let pair = &pairs[&base.map];
        let product = (pair.b.matmul(&pair.a).unwrap() * 2.0).unwrap();
        let by_hand = (&base.weight.tensor + product).unwrap();
        let apart = (by_hand - &merged.weight.tensor).unwrap();
        let apart = apart.abs().unwrap().max_all().unwrap();
        assert!(apart.to_scalar::<f32>().unwrap() < 1e-6);
    }
}

fn whole(examples: &[Example]) -> Pack {
    let places: Vec<usize> = (0..examples.len()).collect();
    Pack::new(&examples.iter().collect::<Vec<_>>(), &places)
}

/// Eight packs of one equal one pack of eight.
#[test]
fn packing_changes_nothing() {
    let mut model = model(true);
    let slots = model.train_everything().len();
    let all = examples();
    let mut together = Gradients::new(slots);
    let way = Way {
        scale: 0.5,
        dropout: None,
        recompute: false,
    };
    let pack = whole(&all);
    let one = loss_and_gradients(&model, &pack, way, &mut together).unwrap();
    let mut apart = Gradients::new(slots);
    let mut sum = 0.0;
    for example in &all {
        sum += loss_and_gradients(&model, &Pack::new(&[example], &[0]), way, &mut apart).unwrap();
    }
    assert!((one - sum).abs() < 1e-4, "{one} is not {sum}");
    for slot in 0..slots {
        let (a, b) = (
            read(together.get(slot).unwrap()).unwrap(),
            read(apart.get(slot).unwrap()).unwrap(),
        );
        assert!(
            a.iter()
                .zip(b.iter())
                .all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + a.abs()))
        );
    }
}

#[test]
fn generation_follows_the_reference_whatever_else_runs() {
    let model = model(false);
    let prompts: Vec<Vec<u32>> = vec![vec![3], vec![9, 8, 7, 6, 5], vec![1, 2, 3], vec![44, 2]];
    let together = model.generate(&prompts, 12, &[]).unwrap();
    let said = model.say(&prompts, 12, &[]).unwrap();
    for ((prompt, together), said) in prompts.iter().zip(&together).zip(&said) {
        assert_eq!(together, &said.tokens);
        let mut lead = f32::INFINITY;
        let mut tokens = prompt.clone();
        for _ in 0..12 {
            let logits = logits(&model, &mut Variables(HashMap::new()), &tokens);
            let last = logits.narrow(0, tokens.len() - 1, 1).unwrap();
            let row = last.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
            let mut row: Vec<f32> = row.to_vec1().unwrap();
            row.sort_by(|a, b| b.total_cmp(a));
            lead = lead.min(row[0] - row[1]);
            tokens.push(
                last.argmax(D::Minus1)
                    .unwrap()
                    .to_dtype(DType::U32)
                    .unwrap()
                    .to_vec1::<u32>()
                    .unwrap()[0],
            );
        }
        assert_eq!(&tokens[prompt.len()..], together);
        assert!((lead - said.lead).abs() < 1e-3, "{lead} and {}", said.lead);
    }
    let stop = together[0][3];
    let end = together[0].iter().position(|&token| token == stop).unwrap();
    assert_eq!(
        model.generate(&prompts[..1], 12, &[stop]).unwrap()[0],
        together[0][..end]
    );
}
