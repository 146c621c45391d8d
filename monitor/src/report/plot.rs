//! A stream's evidence over time, as SVG.

use chrono::DateTime;
use plotters::prelude::*;

use super::Point;
use crate::error::Error;

const SIZE: (u32, u32) = (760, 170);
/// Colours that can be read on white and on black.
const EVIDENCE: RGBColor = RGBColor(70, 130, 220);
const THRESHOLD: RGBColor = RGBColor(220, 80, 60);
const AXES: RGBColor = RGBColor(128, 128, 128);

/// The evidence, and the threshold that it has to reach; empty where there are no two points.
pub(super) fn evidence(points: &[Point]) -> Result<String, Error> {
    let mut svg = String::new();
    if points.len() > 1 {
        draw(points, &mut svg).map_err(|e| Error::Page(e.to_string()))?;
    }
    Ok(svg)
}

fn draw(points: &[Point], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Ok(());
    };
    let seconds = |point: &Point| point.ts.timestamp() as f64;
    // Times that are all the same are no axis.
    let until = seconds(last).max(seconds(first) + 1.0);
    let finite = |x: f64| x.clamp(-50.0, 1_000.0);
    let values = points.iter().flat_map(|p| [p.log_e, p.threshold_log]);
    let (low, high) = values
        .map(finite)
        .fold((0.0_f64, 1.0_f64), |(low, high), x| {
            (low.min(x), high.max(x))
        });
    let mut chart = ChartBuilder::on(&root)
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(44)
        .build_cartesian_2d(seconds(first)..until, low..high * 1.08)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(AXES.mix(0.25))
        .axis_style(AXES)
        .label_style(("sans-serif", 11).into_font().color(&AXES))
        .x_labels(6)
        .y_labels(4)
        .x_label_formatter(&|seconds| {
            let time = DateTime::from_timestamp(*seconds as i64, 0).unwrap_or_default();
            time.format("%m-%d %H:%M").to_string()
        })
        .y_desc("log e")
        .draw()?;
    let line = |of: &dyn Fn(&Point) -> f64| -> Vec<_> {
        points.iter().map(|p| (seconds(p), finite(of(p)))).collect()
    };
    chart.draw_series(LineSeries::new(line(&|p| p.threshold_log), THRESHOLD))?;
    chart.draw_series(LineSeries::new(
        line(&|p| p.log_e),
        EVIDENCE.stroke_width(2),
    ))?;
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}
