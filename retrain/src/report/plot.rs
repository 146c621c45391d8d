//! A training's losses over its steps, as SVG.

use plotters::prelude::*;

use super::Curve;
use crate::Error;

const SIZE: (u32, u32) = (760, 240);
/// Colours that can be read on white and on black.
const TRAINING: RGBColor = RGBColor(70, 130, 220);
const HELD_OUT: RGBColor = RGBColor(220, 80, 60);
const AXES: RGBColor = RGBColor(128, 128, 128);

/// The training's loss and the held-out one; empty where there are no two points.
pub(super) fn losses(curve: &[Curve]) -> Result<String, Error> {
    let points = |of: fn(&Curve) -> Option<f64>| -> Vec<(f64, f64)> {
        let point = |at: &Curve| Some((at.step as f64, of(at).filter(|loss| loss.is_finite())?));
        curve.iter().filter_map(point).collect()
    };
    let (training, held_out) = (points(|at| at.train_loss), points(|at| at.held_out_loss));
    let mut svg = String::new();
    if training.len().max(held_out.len()) > 1 {
        draw(&training, &held_out, &mut svg).map_err(|error| Error::Page(error.to_string()))?;
    }
    Ok(svg)
}

fn draw(
    training: &[(f64, f64)],
    held_out: &[(f64, f64)],
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let all = || training.iter().chain(held_out);
    let steps = all().map(|point| point.0).fold(1.0, f64::max);
    let highest = all().map(|point| point.1).fold(1e-3, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .margin(8)
        .x_label_area_size(32)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..steps, 0.0..highest * 1.05)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(AXES.mix(0.25))
        .axis_style(AXES)
        .label_style(("sans-serif", 11).into_font().color(&AXES))
        .x_label_formatter(&|step| format!("{step:.0}"))
        .x_desc("step")
        .y_desc("loss")
        .draw()?;
    for (points, colour) in [(training, TRAINING), (held_out, HELD_OUT)] {
        let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3);
        chart.draw_series(line)?;
    }
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}
