//! The timeline of a run as SVG: latency of the requests, one lane a cause, and one for the pressure (PSI) on each
//! resource.

use std::ops::Range;

use plotters::prelude::*;

use super::answer::Answer;
use super::digest::COLUMNS;
use super::text::{clean, duration};
use crate::model::{Cause, PressureSummary};

const WIDTH: u32 = 1_040;
const LATENCY_HEIGHT: u32 = 300;
const LANE_HEIGHT: u32 = 22;
const LEFT: u32 = 118;
/// A run shorter than this has no picture: the axis could not be labelled.
const SHORTEST_NS: f64 = 1e6;
/// Causes shown, those with the most stalled time first.
const LANES: usize = 5;
/// Resources of which the kernel keeps the pressure.
const RESOURCES: usize = 3;

fn rgb(cause: Cause) -> RGBColor {
    let text = cause.info().color;
    let part = |at: usize| text.get(at..at + 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
    RGBColor(part(1).unwrap_or(0), part(3).unwrap_or(0), part(5).unwrap_or(0))
}

/// Pressure in less than this part of the run has no lane.
const PRESSURE: f64 = 0.02;
const PRESSURE_COLOUR: RGBColor = RGBColor(86, 101, 115);

/// How much of each column is covered by the stalls of a cause, or in how much of it threads waited for a
/// resource, 0 to 1.
struct Lane {
    label: String,
    colour: RGBColor,
    covered: Vec<f64>,
}

/// The timeline; `None` when there is neither a request nor a stall to show.
#[must_use]
pub fn timeline(answer: &Answer) -> Option<String> {
    let end_ns = answer.axis_ns;
    let lanes = lanes(answer, end_ns);
    if answer.samples.is_empty() && lanes.is_empty() || end_ns < SHORTEST_NS {
        return None;
    }
    let latency_height = if answer.samples.is_empty() { 0 } else { LATENCY_HEIGHT };
    let pressure = pressure(answer, end_ns);
    let height = latency_height + LANE_HEIGHT * (lanes.len() + pressure.len()) as u32 + 44;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let (upper, lower) = root.split_vertically(latency_height);
        let seconds = 0.0..end_ns / 1e9;
        // Drawing into a string cannot fail; if it did, a report without the picture is better than
        // none.
        if latency_height > 0 {
            draw_latency(answer, &upper, seconds.clone(), &lanes).ok()?;
        }
        let lanes: Vec<&Lane> = lanes.iter().chain(&pressure).collect();
        draw_lanes(&lower, seconds, &lanes).ok()?;
        root.present().ok()?;
    }
    Some(svg)
}

fn lanes(answer: &Answer, end_ns: f64) -> Vec<Lane> {
    if end_ns < SHORTEST_NS {
        return Vec::new();
    }
    let mut lanes: Vec<(Cause, &Vec<f64>)> =
        answer.lanes.iter().map(|(cause, covered)| (*cause, covered)).collect();
    let named: Vec<Cause> = answer
        .summary
        .iter()
        .flat_map(|summary| &summary.causes)
        .filter(|row| row.named)
        .map(|row| row.cause)
        .collect();
    let total = |covered: &Vec<f64>| covered.iter().sum::<f64>();
    lanes.sort_by(|a, b| {
        let named = |cause: &Cause| named.contains(cause);
        named(&b.0).cmp(&named(&a.0)).then(total(b.1).total_cmp(&total(a.1)))
    });
    let lane = |(cause, covered): &(Cause, &Vec<f64>)| Lane {
        label: cause.name().to_owned(),
        colour: rgb(*cause),
        covered: covered.to_vec(),
    };
    lanes.iter().take(LANES).map(lane).collect()
}

/// The pressure on each resource under which the target's cgroups were, or the host where theirs is not known.
fn pressure(answer: &Answer, end_ns: f64) -> Vec<Lane> {
    let of_run = &answer.run.conditions;
    let conditions = answer.summary.as_ref().map_or(of_run, |summary| &summary.conditions);
    let of_cgroups = conditions.pressure.iter().any(|one| one.cgroup.is_some());
    let mut most: Vec<&PressureSummary> = Vec::new();
    for one in &conditions.pressure {
        let is_told =
            one.cgroup.is_some() == of_cgroups && one.some_share() >= PRESSURE && one.part_ns > 0;
        match most.iter_mut().find(|other| other.resource == one.resource) {
            _ if !is_told => {}
            Some(other) if other.some_us < one.some_us => *other = one,
            Some(_) => {}
            None => most.push(one),
        }
    }
    let lane = |one: &&PressureSummary| {
        let share = |column: usize| {
            let at_ns = (column as f64 + 0.5) * end_ns / COLUMNS as f64;
            let part = (at_ns / one.part_ns as f64) as u64;
            let begin_ns = part as f64 * one.part_ns as f64;
            // The last part ends with the run.
            let length_ns = (end_ns - begin_ns).clamp(1.0, one.part_ns as f64);
            let some_us = one.some_by_part_us.get(part as usize).copied().unwrap_or(0);
            (some_us as f64 * 1e3 / length_ns).min(1.0)
        };
        Lane {
            label: format!("PSI {}", clean(&one.resource, 8)),
            colour: PRESSURE_COLOUR,
            covered: (0..COLUMNS).map(share).collect(),
        }
    };
    most.iter().take(RESOURCES).map(lane).collect()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn label_style() -> TextStyle<'static> {
    ("sans-serif", 13).into_font().color(&RGBColor(93, 104, 114))
}

/// Begin in seconds and response time in milliseconds.
type Dot = (f64, f64);

/// Requests worth a dot: all slow ones, and of the others the fastest and the slowest of each
/// column, so that the picture stays small whatever the rate.
fn dots(answer: &Answer, seconds: &Range<f64>) -> (Vec<Dot>, Vec<Dot>) {
    let threshold = answer
        .summary
        .as_ref()
        .filter(|summary| summary.samples.slow_count > 0)
        .map_or(u64::MAX, |summary| summary.samples.slow_threshold_ns);
    let mut slow = Vec::new();
    let mut columns: Vec<Option<[Dot; 2]>> = vec![None; COLUMNS];
    for sample in &answer.samples {
        let at = answer.offset_ns(sample.begin()) / 1e9;
        if !seconds.contains(&at) {
            continue;
        }
        let dot = (at, (sample.response_ns() as f64 / 1e6).max(1e-3));
        if sample.response_ns() >= threshold {
            slow.push(dot);
            continue;
        }
        let column = ((at / seconds.end) * COLUMNS as f64) as usize;
        match &mut columns[column.min(COLUMNS - 1)] {
            Some([low, high]) => {
                if dot.1 < low.1 {
                    *low = dot;
                }
                if dot.1 > high.1 {
                    *high = dot;
                }
            }
            empty => *empty = Some([dot, dot]),
        }
    }
    // More than this many marks are a red block in any case.
    let step = slow.len().div_ceil(5_000).max(1);
    (columns.into_iter().flatten().flatten().collect(), slow.into_iter().step_by(step).collect())
}

fn draw_latency(answer: &Answer, area: &Area<'_>, seconds: Range<f64>, lanes: &[Lane]) -> Drawn {
    let (usual, slow) = dots(answer, &seconds);
    let all = || usual.iter().chain(&slow).map(|dot| dot.1);
    let high = all().fold(0.01, f64::max) * 1.3;
    let low = (all().fold(f64::INFINITY, f64::min) / 1.3).clamp(1e-3, high / 2.0);
    let mut chart = ChartBuilder::on(area)
        .margin_right(12)
        .margin_top(8)
        .x_label_area_size(0)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(seconds.clone(), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(232, 236, 239))
        .axis_style(RGBColor(190, 198, 205))
        .y_labels(6)
        .y_label_formatter(&|ms| duration(ms * 1e6))
        .y_label_style(label_style())
        .draw()?;
    // The top lane's stalls as bands behind the requests they made slow.
    let column = seconds.end / COLUMNS as f64;
    for lane in lanes.iter().take(1) {
        chart.draw_series(runs(&lane.covered).into_iter().map(|(from, to, covered)| {
            let style = lane.colour.mix(0.04 + 0.16 * covered).filled();
            Rectangle::new([(from as f64 * column, low), (to as f64 * column, high)], style)
        }))?;
    }
    let dot = RGBColor(120, 132, 143).mix(0.55).filled();
    chart.draw_series(usual.into_iter().map(|at| Circle::new(at, 1.4, dot)))?;
    let mark = RGBColor(192, 57, 43).mix(0.85).filled();
    chart.draw_series(slow.into_iter().map(|at| Circle::new(at, 2.6, mark)))?;
    Ok(())
}

/// Neighbouring columns of about the same cover as one: from, to, cover.
fn runs(covered: &[f64]) -> Vec<(usize, usize, f64)> {
    // The eye distinguishes eight shades; any stall at all gets the first.
    let shade = |cover: f64| {
        if cover > 0.0 { ((cover.min(1.0) * 8.0).ceil()).max(1.0) / 8.0 } else { 0.0 }
    };
    let mut runs: Vec<(usize, usize, f64)> = Vec::new();
    for (column, &cover) in covered.iter().enumerate() {
        let cover = shade(cover);
        match runs.last_mut() {
            Some((_, to, last)) if *to == column && *last == cover => *to = column + 1,
            _ if cover > 0.0 => runs.push((column, column + 1, cover)),
            _ => {}
        }
    }
    runs
}

fn draw_lanes(area: &Area<'_>, seconds: Range<f64>, lanes: &[&Lane]) -> Drawn {
    let count = lanes.len() as u32;
    let column = seconds.end / COLUMNS as f64;
    let mut chart = ChartBuilder::on(area)
        .margin_right(12)
        .margin_top(4)
        .x_label_area_size(36)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(seconds.clone(), 0.0..f64::from(count.max(1)))?;
    chart
        .configure_mesh()
        .disable_mesh()
        .axis_style(RGBColor(190, 198, 205))
        .x_labels(10)
        .x_label_formatter(&|at| {
            format!("{at:.4}").trim_end_matches('0').trim_end_matches('.').to_owned() + " s"
        })
        .x_label_style(label_style())
        .y_labels(0)
        .draw()?;
    for (index, lane) in lanes.iter().enumerate() {
        let top = f64::from(count - index as u32);
        chart.draw_series(runs(&lane.covered).into_iter().map(|(from, to, covered)| {
            let style = lane.colour.mix(0.15 + 0.85 * covered).filled();
            let corners = [(from as f64 * column, top), (to as f64 * column, top - 1.0)];
            let mut band = Rectangle::new(corners, style);
            band.set_margin(3, 3, 0, 0);
            band
        }))?;
        let style = ("sans-serif", 13).into_font().color(&lane.colour);
        let at = (0, (4 + index as u32 * LANE_HEIGHT + 5) as i32);
        area.draw(&Text::new(lane.label.as_str(), at, style))?;
    }
    Ok(())
}
